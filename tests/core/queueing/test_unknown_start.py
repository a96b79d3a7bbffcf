"""A head whose start depends on an unknown end neither idles the pool nor waits long for others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_core.queueing import Allocation, decide
from llmtrain_core.queueing.quarantine import Exclusion, NodeLists, Quarantine
from llmtrain_core.topology.inventory import Snapshot
from tests.support.queue_sim import Arrival, History, cluster_state, fabric, simulate, start, wait

pytestmark = pytest.mark.unit

DAY = 86400.0
HOUR = 3600.0


def foreign(uid: str, *nodes: str, gpus: int = 8) -> Allocation:
    """A pod of others, or a third-party job without a deadline: its end is unknown."""
    found = Arrival(uid, len(nodes), 0.0, gpus=gpus).running(nodes, 0.0)
    return replace(found, preemptible=False)


def test_short_jobs_start_while_a_pod_of_others_keeps_the_head_waiting() -> None:
    seen, holder = fabric(16), foreign("foreign", "n000")
    head = Arrival("head", 16, HOUR)
    short = [Arrival(f"short{i:02}", 1, 60.0, at=1.0 + i, bound=60) for i in range(40)]
    found = simulate([head, *short], seen, {"foreign": holder}, {"foreign": 20 * DAY})
    assert all(found.starts[job.uid][0] <= job.at + 120 for job in short), "15 at a time"
    assert found.starts["head"] == [20 * DAY]


def test_nodes_that_victims_have_freed_are_used_while_one_of_them_does_not_end() -> None:
    """The pod that has not ended in time has no known end, and cannot be preempted again."""
    stuck = foreign("", "n003")
    vip = Arrival("vip", 4, HOUR, priority=5)
    short = Arrival("short", 3, 60.0, at=1.0, bound=60)
    state = cluster_state(fabric(4), 0.0, [stuck], nominated=frozenset({"vip"}))
    found = decide([vip.waiting(), short.waiting()], state)
    assert wait(found["vip"]).starts_at is None
    assert start(found["short"]).nodes == ("n000", "n001", "n002")
    state = cluster_state(fabric(4), 0.0, [], nominated=frozenset({"vip"}))
    found = decide([vip.waiting(), short.waiting()], state)
    assert start(found["vip"])


def test_a_full_cluster_job_beside_a_flapping_node() -> None:
    """The node is quarantined twice, with a minute between. Jobs without an end wait meanwhile."""
    spans = [(0.0, 600.0), (660.0, 1800.0)]

    def quarantined(now: float) -> Mapping[str, float]:
        end = next((end for begin, end in spans if begin <= now < end), None)
        return {} if end is None else {"n003": end}

    changes = [moment for span in spans for moment in span]
    head = Arrival("head", 4, HOUR)
    short = [Arrival(f"short{i:02}", 1, 300.0, at=1.0 + 60 * i, bound=900) for i in range(40)]
    endless = Arrival("endless", 1, 9 * HOUR, at=1.0)
    found = simulate(
        [head, *short, endless], fabric(4), window=HOUR, quarantined=quarantined, changes=changes
    )
    begun = found.starts["head"][0]
    assert 1800 <= begun <= 1800 + HOUR
    assert found.starts["endless"][0] >= begun
    assert sum(found.starts[job.uid][0] < begun for job in short) >= 15


def test_once_the_end_is_known_the_ordinary_reservation_applies() -> None:
    known = Arrival("known", 1, 100.0, bound=100).running(["n000"], 0.0)
    head = Arrival("head", 4, HOUR)
    late = Arrival("late", 1, 101.0, at=1.0, bound=101)
    for holder, starts in ((known, False), (foreign("unknown", "n000"), True)):
        state = cluster_state(fabric(4), 0.0, [holder])
        decision = decide([head.waiting(), late.waiting()], state)["late"]
        assert bool(start(decision) if starts else wait(decision).behind == ("ns/head",))


@dataclass(frozen=True)
class Case:
    seen: Snapshot
    running: dict[str, Allocation]
    ends: dict[str, float]
    head: Arrival
    others: list[Arrival]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A head that does not fit now, beside allocations of known and of unknown end."""
    count = draw(st.integers(2, 8))
    running, ends = {}, {}
    for index in range(draw(st.integers(1, count))):
        uid, end = f"run{index}", float(draw(st.integers(1, 400)))
        held = foreign(uid, f"n{index:03}", gpus=draw(st.sampled_from([4, 8])))
        known = draw(st.booleans())
        running[uid], ends[uid] = replace(held, ends_at=end if known else None), end
    level = draw(st.sampled_from([None, None, "leaf"]))
    largest = min(count, 4) if level else count
    head = Arrival("head", draw(st.integers(1, largest)), 50.0, require=level)
    others = [
        Arrival(
            f"job{index}",
            draw(st.integers(1, count)),
            length,
            at=float(draw(st.integers(0, 500))),
            gpus=draw(st.sampled_from([4, 8])),
            bound=draw(st.sampled_from([length, length, None])),
        )
        for index in range(draw(st.integers(1, 8)))
        for length in [float(draw(st.integers(1, 150)))]
    ]
    return Case(fabric(count), running, ends, head, others)


@settings(max_examples=60)
@given(cases(), st.sampled_from([1.0, 60.0, 100.0]))
def test_the_head_is_delayed_by_at_most_one_window(case: Case, window: float) -> None:
    """Alone it starts when it fits, or when the queue says once that is known."""
    alone = simulate([case.head], case.seen, case.running, case.ends, window=window)
    among = simulate([case.head, *case.others], case.seen, case.running, case.ends, window=window)
    expected = max(alone.starts["head"][0], alone.promised.get("head", 0.0))
    assert among.starts["head"][0] <= expected + window


@settings(max_examples=60)
@given(cases(), st.sampled_from([1.0, 60.0, 100.0]), st.data())
def test_nodes_of_victims_delay_the_head_by_at_most_one_window(
    case: Case, window: float, data: st.DataObject
) -> None:
    """Pods of its victims have not ended in time. What they hold has no known end.

    The start that the queue announces is later then: others may use the nodes until that.
    """
    free = [node.name for node in case.seen.nodes if f"run{int(node.name[1:])}" not in case.running]
    victims = [Arrival(f"victim{name}", 1, 1000.0) for name in free]
    overdue = {victim.uid: float(data.draw(st.integers(1, 300))) for victim in victims}
    head = replace(case.head, priority=5, at=1.0)
    others = [replace(job, at=job.at + 2.0) for job in case.others]

    def begin(*jobs: Arrival) -> History:
        arrivals = [*victims, head, *jobs]
        return simulate(
            arrivals, case.seen, case.running, case.ends, window=window, overdue=overdue
        )

    alone, among = begin(), begin(*others)
    expected = max(alone.starts["head"][0], alone.postponed.get("head", 0.0))
    assert among.starts["head"][0] <= expected + window


@settings(max_examples=60)
@given(
    st.integers(2, 6),
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 150), st.integers(0, 900)), max_size=8),
    st.sampled_from([1.0, 60.0, 100.0]),
)
def test_each_quarantine_delays_a_full_cluster_job_by_at_most_one_window(
    count: int, flaps: list[tuple[int, int]], jobs: list[tuple[int, int, int]], window: float
) -> None:
    """It starts a window after a quarantine at the latest, unless another one begins before."""
    spans, moment = [], 0.0
    for lasts, pause in flaps:
        spans.append((moment, moment + lasts))
        moment += lasts + pause

    def quarantined(now: float) -> Mapping[str, float]:
        end = next((end for begin, end in spans if begin <= now < end), None)
        return {} if end is None else {"n001": end}

    head = Arrival("head", count, 50.0)
    others = [
        Arrival(f"job{index}", min(nodes, count), float(length), at=1.0 + at, bound=float(length))
        for index, (nodes, length, at) in enumerate(jobs)
    ]
    found = simulate(
        [head, *others],
        fabric(count),
        window=window,
        quarantined=quarantined,
        changes=[each for span in spans for each in span],
    )
    following = [begin for begin, _ in spans[1:]] + [math.inf]
    latest = min(
        end + window
        for (_, end), begin in zip(spans, following, strict=True)
        if end + window < begin
    )
    assert found.starts["head"][0] <= latest


@settings(max_examples=60)
@given(cases())
def test_only_jobs_of_the_window_start_before_a_head_without_a_known_start(case: Case) -> None:
    waiting = [case.head, *(replace(job, at=1.0) for job in case.others)]
    state = cluster_state(case.seen, 0.0, [*case.running.values()], window=60.0)
    found = decide([job.waiting() for job in waiting], state)
    told = found["head"]
    if hasattr(told, "placement") or told.starts_at is not None:
        return
    for job in case.others:
        if hasattr(found[job.uid], "placement"):
            assert job.bound is not None and job.bound <= 60


@pytest.mark.parametrize("for_all", [True, False])
def test_a_quarantine_of_one_namespace_reserves_no_nodes_from_others(for_all: bool) -> None:
    """Otherwise a tenant's own failures would keep the nodes of all others idle."""
    out = NodeLists({"n003": Exclusion(600.0)})
    found = Quarantine(out) if for_all else Quarantine(by_namespace={"ns": out})
    state = replace(cluster_state(fabric(4), 0.0, []), quarantine=found)
    head = Arrival("head", 4, HOUR)
    endless = Arrival("endless", 1, HOUR, at=1.0, namespace="other")
    decisions = decide([head.waiting(), endless.waiting()], state)
    assert wait(decisions["head"])
    if for_all:
        assert wait(decisions["endless"]).behind == ("ns/head",)
    else:
        assert start(decisions["endless"])
