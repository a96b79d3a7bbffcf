"""What is foreseen: starts of those who wait, and nodes that are out for a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_core.queueing import Unschedulable, decide
from llmtrain_core.queueing.quarantine import NodeFailure, quarantine
from tests.support.queue_sim import Arrival, cluster_state, fabric, simulate, wait

pytestmark = pytest.mark.unit


def starts(*jobs: Arrival, nodes: int = 4, busy: float | None = 100.0) -> dict[str, float | None]:
    seen = fabric(nodes)
    held = Arrival("busy", nodes, 100, bound=busy).running([n.name for n in seen.nodes], 0.0)
    found = decide([job.waiting() for job in jobs], cluster_state(seen, 0.0, [held]))
    return {uid: wait(decision).starts_at for uid, decision in found.items()}


def test_each_starts_when_those_before_it_leave_room() -> None:
    queue = [Arrival(f"j{i}", 2, 50, at=i, bound=50) for i in range(5)]
    assert starts(*queue) == {"j0": 100, "j1": 100, "j2": 150, "j3": 150, "j4": 200}


def test_nobody_foretells_what_hangs_on_an_unknown_end() -> None:
    queue = [Arrival("j0", 4, 50, at=0), Arrival("j1", 1, 50, at=1, bound=50)]
    assert starts(*queue) == {"j0": 100, "j1": None}
    assert starts(*queue, busy=None) == {"j0": None, "j1": None}
    planned = replace(queue[0].waiting(), expected_duration=30.0)
    held = Arrival("busy", 4, 100, bound=100).running([f"n{i:03}" for i in range(4)], 0.0)
    later = queue[1].waiting()
    found = decide([planned, later], cluster_state(fabric(4), 0.0, [held]))
    assert wait(found["j1"]).starts_at == 130, "a plan is enough to foretell, not to pass others"


def test_pools_do_not_wait_for_each_other() -> None:
    seen = fabric(4, gold=2)
    running = [
        Arrival("a", 2, 90, bound=90).running(["n000", "n001"], 0.0),
        Arrival("b", 2, 20, bound=20).running(["n002", "n003"], 0.0),
    ]
    jobs = [Arrival("x", 2, 9, at=1, pool="all"), Arrival("y", 1, 9, at=2, pool="gold")]
    found = decide([job.waiting() for job in jobs], cluster_state(seen, 0.0, running))
    assert {uid: wait(d).starts_at for uid, d in found.items()} == {"x": 90, "y": 20}


lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(lengths)
def test_the_first_in_line_starts_when_foretold(
    wanted: list[tuple[int, int]],
) -> None:
    queue = [
        Arrival(f"j{i}", nodes, length, bound=length) for i, (nodes, length) in enumerate(wanted)
    ]
    told = starts(*queue, busy=100.0)
    seen = fabric(4)
    held = Arrival("busy", 4, 100, bound=100).running([n.name for n in seen.nodes], 0.0)
    history = simulate(queue, seen, {"busy": held}, {"busy": 100.0})
    assert history.starts["j0"] == [told["j0"]]
    assert all(told[job.uid] is not None and told[job.uid] >= 100 for job in queue)  # type: ignore[operator]


HOUR = 3600.0


@pytest.mark.parametrize(
    ("ago", "out", "suspect"),
    [
        ([], None, False),
        ([10], None, True),
        ([10, 100], 590, False),
        ([10, 100, 200], 1190, False),
        ([10, HOUR + 20], None, True),
        ([700, 800], None, True),
        ([HOUR + 1], None, False),
        ([10 + n for n in range(30)], 4 * HOUR - 10, False),
    ],
)
def test_quarantine(ago: list[float], out: float | None, suspect: bool) -> None:
    now = 1e6
    failures = [
        NodeFailure("n", now - seconds, "ns", "ns/job", "NodeLost", own=True) for seconds in ago
    ]
    found = quarantine(failures, now, {"n": ""}).of("any")
    assert {node: item.until for node, item in found.excluded.items()} == (
        {} if out is None else {"n": now + out}
    )
    assert found.suspects == (frozenset({"n"}) if suspect else frozenset())
    if out is not None:
        assert quarantine(failures, now + out, {"n": ""}).of("any").excluded == {}


def test_nodes_that_are_out_are_out_and_suspects_come_last() -> None:
    seen = fabric(3)
    job = Arrival("job", 2, 9).waiting()
    found = decide([job], cluster_state(seen, 0.0, [], suspects=frozenset({"n000"})))["job"]
    assert not isinstance(found, Unschedulable)
    assert [node.name for node in found.placement.nodes] == ["n001", "n002"]
    out = {"n000": 50.0, "n001": 60.0}
    refused = wait(decide([job], cluster_state(seen, 0.0, [], quarantined=out))["job"])
    assert refused.reason == "NodesQuarantined"
    assert "until 1970-01-01T00:00:50Z" in refused.message
    assert not isinstance(
        decide([job], cluster_state(seen, 0.0, [], quarantined={"n000": 50.0}))["job"],
        Unschedulable,
    )
