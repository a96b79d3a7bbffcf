"""Backfill: who may go before the head of the queue, and that it never costs the head anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_core.queueing import Assignment, QueueDecision, Unschedulable, decide
from llmtrain_core.topology.inventory import Snapshot
from tests.support.queue_sim import Arrival, cluster_state, fabric, simulate, start, wait

pytestmark = pytest.mark.unit


def decided(seen: Snapshot, running: list[Arrival], *waiting: Arrival) -> dict[str, QueueDecision]:
    held = [job.running([f"n{i:03}" for i in range(job.nodes)], 0.0) for job in running]
    return decide([job.waiting() for job in waiting], cluster_state(seen, 0.0, held))


def test_a_short_job_passes_and_a_long_one_waits() -> None:
    busy = [Arrival("busy", 3, 100, bound=100)]
    head = Arrival("head", 4, 50, at=1, bound=50)
    short, long = (Arrival(f"job{n}", 1, n, at=2, bound=n) for n in (100, 101))
    found = decided(fabric(4), busy, head, short)
    assert wait(found["head"]).starts_at == 100
    assert start(found["job100"]).backfilled
    found = decided(fabric(4), busy, head, long)
    assert wait(found["job101"]).behind == ("ns/head",)
    assert "reserved for jobs ahead: ns/head" in wait(found["job101"]).message


def test_a_long_job_passes_where_the_head_does_not_need_the_room() -> None:
    busy = [Arrival("busy", 3, 100, bound=100)]
    head = Arrival("head", 4, 50, at=1, bound=50)
    long = Arrival("long", 1, 900, at=2)
    found = decided(fabric(8), busy, Arrival("other", 2, 900, at=0.5), head, long)
    assert wait(found["head"]).starts_at == 100
    assert start(found["long"]).backfilled
    tight = decided(fabric(6), busy, Arrival("other", 2, 900, at=0.5), head, long)
    assert isinstance(tight["long"], Unschedulable)


def test_part_of_a_node_is_enough() -> None:
    busy = [Arrival("busy", 2, 100, bound=100, gpus=8)]
    head = Arrival("head", 2, 50, at=1, gpus=4, require="leaf")
    found = decided(fabric(2), busy, head, Arrival("tiny", 1, 9, at=2, gpus=4))
    assert isinstance(found["tiny"], Unschedulable), "nothing is free now"
    busy = [Arrival("busy", 2, 100, bound=100, gpus=6)]
    found = decided(fabric(2), busy, head, Arrival("tiny", 1, 9, at=2, gpus=2))
    assert start(found["tiny"]).backfilled, "two GPUs beside the head's four"


def test_an_unknown_end_keeps_what_the_head_could_use() -> None:
    busy = [Arrival("busy", 3, 100)]
    head, long = Arrival("head", 4, 50, at=1), Arrival("long", 1, 3601, at=2, bound=3601)
    for later in (long, replace(long, bound=None)):
        found = decided(fabric(4, other=0), busy, head, later)
        assert wait(found["head"]).starts_at is None
        assert wait(found["long"]).behind == ("ns/head",)
        assert "activeDeadlineSeconds of at most 3600 may start" in wait(found["long"]).message
    found = decided(
        fabric(5, other=1),
        busy,
        Arrival("head", 4, 50, at=1, pool="all"),
        Arrival("free", 1, 1, at=2, pool="other"),
    )
    assert not start(found["free"]).backfilled, "another pool: nobody is passed"


def test_every_pool_has_a_head_of_its_own() -> None:
    seen = fabric(8, gold=4)
    running = [
        Arrival("a", 2, 9, pool="all").running(["n000", "n001"], 0.0),
        Arrival("b", 2, 9, pool="gold").running(["n004", "n005"], 0.0),
    ]
    jobs = [
        Arrival("one", 4, 9, at=1, pool="all"),
        Arrival("two", 4, 9, at=2, pool="gold"),
        Arrival("small", 1, 9, at=3, pool="gold"),
    ]
    found = decide([job.waiting() for job in jobs], cluster_state(seen, 0, running))
    assert wait(found["small"]).behind == ("ns/two",)


def test_a_promise_binds_only_those_who_would_still_be_there() -> None:
    """Two pools, two heads: at 20 and at 200. Who ends at 100 leaves alone what is due at 20."""
    seen = fabric(4, gold=2)
    running = [
        Arrival("a", 2, 200, bound=200).running(["n000", "n002"], 0.0),
        Arrival("b", 1, 20, bound=20).running(["n003"], 0.0),
    ]
    heads = [
        Arrival("wide", 2, 9, at=1, pool="all"),
        Arrival("gold", 1, 9, at=2, pool="gold", bound=9),
    ]
    for pool in ("", "all"):
        small = Arrival("small", 1, 100, at=3, pool=pool, bound=100)
        found = decide(
            [job.waiting() for job in (*heads, small)], cluster_state(seen, 0.0, running)
        )
        assert wait(found["wide"]).starts_at == 200 and wait(found["gold"]).starts_at == 20
        assert [node.name for node in start(found["small"]).placement.nodes] == ["n001"]
    late = Arrival("late", 1, 201, at=3, bound=201)
    found = decide([job.waiting() for job in (*heads, late)], cluster_state(seen, 0.0, running))
    assert wait(found["late"]).behind == ("ns/gold", "ns/wide")


@st.composite
def queues(draw: st.DrawFn) -> tuple[Snapshot, list[Arrival], list[Arrival]]:
    """A cluster, jobs that run, and jobs that wait; all ends are known and true."""
    count = draw(st.integers(2, 8))
    free = {f"n{i:03}": 8 for i in range(count)}
    running = []
    for index in range(draw(st.integers(0, 4))):
        gpus, length = draw(st.sampled_from([4, 8])), draw(st.integers(1, 60))
        names = [name for name, left in free.items() if left >= gpus]
        nodes = draw(st.integers(1, 3))
        if len(names) >= nodes:
            for name in names[:nodes]:
                free[name] -= gpus
            running.append(Arrival(f"run{index}", nodes, length, gpus=gpus, bound=length))
    waiting = []
    for index in range(draw(st.integers(2, 7))):
        length = draw(st.integers(1, 60))
        gpus, level = draw(st.sampled_from([4, 8])), draw(st.sampled_from([None, None, "leaf"]))
        nodes = draw(st.integers(1, count))
        waiting.append(
            Arrival(f"job{index}", nodes, length, gpus=gpus, bound=length, require=level)
        )
    return fabric(count), running, waiting


@settings(max_examples=100)
@given(queues())
def test_the_head_starts_no_later_for_those_behind_it(
    case: tuple[Snapshot, list[Arrival], list[Arrival]],
) -> None:
    seen, running, waiting = case
    free = {node.name: 8 for node in seen.nodes}
    holds = {}
    for job in running:
        names = [name for name, left in free.items() if left >= job.gpus][: job.nodes]
        for name in names:
            free[name] -= job.gpus
        holds[job.uid] = job.running(names, 0.0)
    ends = {job.uid: job.length for job in running}
    first = decide(
        [job.waiting() for job in waiting], cluster_state(seen, 0.0, list(holds.values()))
    )
    order = sorted(waiting, key=lambda job: job.uid)
    heads = [
        job
        for job in order
        if isinstance(first[job.uid], Unschedulable) and wait(first[job.uid]).starts_at is not None
    ]
    if not heads:
        return
    head = heads[0]
    ahead = [job for job in order if job.uid <= head.uid]
    alone = simulate(ahead, seen, holds, ends).starts[head.uid][0]
    among = simulate(waiting, seen, holds, ends).starts[head.uid][0]
    assert among <= alone
    if all(isinstance(first[job.uid], Assignment) for job in ahead[:-1]):
        assert wait(first[head.uid]).starts_at == pytest.approx(alone)
