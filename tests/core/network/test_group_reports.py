"""What a job reports of its groups, and what is read of a report that may say anything."""

from __future__ import annotations

import json
from math import inf, log, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.layout import GROUP_LABELS, Layout
from llmtrain_core.network.group_reports import (
    MAX_RATIO,
    GroupSlowdown,
    SlowdownReport,
    observations,
    slowdowns,
)
from llmtrain_core.network.links import (
    MAX_INSIDE,
    MAX_REPORTED,
    Group,
    JobRanks,
    job_groups,
    reported_groups,
)
from llmtrain_core.network.transfer_times import LEAST_BLOCKS, JobTimes, SampleBlock, record

pytestmark = pytest.mark.unit

NODES = tuple((f"r{index // 2}", f"n{index}") for index in range(4))
JOB = JobRanks(Layout(tensor=2, data=4), NODES, 2)
GROUPS = JOB.reported_groups()


def read(value: Any) -> SlowdownReport | None:
    return SlowdownReport.from_wire(value, GROUPS.keys())


def entry(**changes: Any) -> dict[str, Any]:
    one = {"group": "dp", "ranks": [0, 1], "ratio": [1.0, 2.0], "error": [0.1, 0.2]}
    return {"block": 3, "groups": [one | changes]}


def test_all_groups_of_a_job_of_usual_size_are_reported() -> None:
    assert set(GROUPS) == {("dp", 0), ("dp", 1), *(("tp", rank) for rank in (0, 2, 4, 6))}
    expected = job_groups(JOB.layout, NODES, 2, ["tp", "dp"])
    assert list(GROUPS.values()) == list(expected)


def test_of_many_groups_evenly_spaced_ones_are_reported() -> None:
    layout = Layout(tensor=8, data=64, pipeline=16)
    stages = reported_groups(layout.group("pp"), layout.world_size, 8)
    firsts = [members[0] for members in stages]
    assert len(firsts) == MAX_REPORTED == 512 // 4
    assert firsts == list(range(0, 512, 4))
    assert {rank // 8 for members in stages for rank in members} == set(range(1024))
    inside = reported_groups(layout.group("tp"), layout.world_size, 8)
    assert len(inside) == MAX_INSIDE


def test_a_report_of_the_largest_job_is_small() -> None:
    layout = Layout(tensor=4, context=2, data=32, replicate=8, pipeline=4, expert=8)
    nodes = tuple((f"r{index // 8}", f"n{index}") for index in range(layout.world_size // 8))
    groups = JobRanks(layout, nodes, 8, copies_per_rack=4).reported_groups()
    assert {label for label, _ in groups} >= set(GROUP_LABELS) - {"cp"}
    every = tuple(GroupSlowdown(key, log(1.2345), 0.01234) for key in groups)
    assert len(json.dumps(SlowdownReport(10**6, every).to_wire())) < 32 * 1024


def test_a_report_is_read_as_it_was_written() -> None:
    written = SlowdownReport(
        7,
        (
            GroupSlowdown(("dp", 0), log(2.5), 0.02),
            GroupSlowdown(("dp", 1), log(0.9), 0.125),
            GroupSlowdown(("tp", 6), 0.0, 0.01),
        ),
    )
    found = read(json.loads(json.dumps(written.to_wire())))
    assert found is not None and found.block == 7
    assert [each.group for each in found.groups] == [each.group for each in written.groups]
    for one, other in zip(found.groups, written.groups, strict=True):
        assert one.log_ratio == pytest.approx(other.log_ratio, abs=1e-3)
        assert one.error == pytest.approx(other.error, rel=1e-3)


def test_groups_become_observations_with_the_links_of_the_placement() -> None:
    found = read(entry())
    assert found is not None
    first, second = observations("uid", found, GROUPS)
    assert (first.group, first.job, first.label) == ("uid/dp/0", "uid", "dp")
    assert first.links == {("r0",), ("r1",), *NODES}
    assert second.log_ratio == pytest.approx(log(2))


@pytest.mark.parametrize(
    "value", [None, 7, [], {}, {"block": "1"}, {"block": -1}, {"block": 2**53}, {"block": True}]
)
def test_without_a_block_there_is_no_report(value: Any) -> None:
    assert read(value) is None


@pytest.mark.parametrize(
    "value",
    [
        {"block": 1},
        {"block": 1, "groups": {"dp": 1}},
        {"block": 1, "groups": [None, 7, "dp"]},
        entry(group="x"),
        entry(group=["dp"]),
        entry(ranks=None),
        entry(ranks=[0]),
        entry(ranks=[2, -1]),
        entry(ranks=[True, "1"]),
        entry(ranks=[10**9, 0.0]),
        entry(ratio=[nan, inf]),
        entry(ratio=[0, -1.0]),
        entry(error=["0.1", None]),
        entry(
            ranks=[0] * (MAX_REPORTED + MAX_INSIDE + 1),
            ratio=[2.0] * (MAX_REPORTED + MAX_INSIDE + 1),
            error=[0.1] * (MAX_REPORTED + MAX_INSIDE + 1),
        ),
    ],
)
def test_what_is_no_group_of_the_job_is_left_out(value: Any) -> None:
    found = read(value)
    assert found is not None and found.groups == ()


def test_numbers_are_bounded() -> None:
    found = read(entry(ratio=[10**400, 1e-300], error=[1e-300, 1e300]))
    assert found is not None
    ratios = [each.log_ratio for each in found.groups]
    assert ratios == pytest.approx([log(MAX_RATIO), -log(MAX_RATIO)])
    assert all(0 < each.error <= MAX_RATIO for each in found.groups)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["block", "groups", "group", "ranks"]), children)
    ),
    max_leaves=20,
)


@given(json_values, json_values)
def test_any_json_is_read(whole: Any, part: Any) -> None:
    read(whole)
    read({"block": 1, "groups": [entry()["groups"][0] | {"ratio": part, "ranks": whole}]})


def test_slowdowns_of_the_last_blocks() -> None:
    times, group = JobTimes(""), Group("dp", 4, frozenset())
    for number in range(LEAST_BLOCKS + 2):
        seconds = 1.0 if number < LEAST_BLOCKS else 3.0
        assert (slowdowns(times) == ()) == (number < LEAST_BLOCKS)
        times = record(times, [("collectives", "dp 4", group, SampleBlock(seconds, 0.02))])
    (found,) = slowdowns(times)
    assert found.group == ("dp", 4)
    assert found.log_ratio == pytest.approx(log(3.0))
