"""Who gets a place: properties that hold for every queue and every cluster. Pure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.status.job import PlacementStatus
from llmtrain_core.queueing import Allocation, Assignment, ClusterState, PendingJob, Unschedulable
from llmtrain_core.queueing.cycle import decide_within
from llmtrain_core.queueing.round import Round
from llmtrain_core.topology.inventory import Node, Usage
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.placement_status import placement_status, summary
from llmtrain_operator.cache.records import (
    PriorityRecord,
)
from llmtrain_operator.scheduler import cycle, loop
from llmtrain_operator.scheduler.cycle import Decisions
from llmtrain_operator.scheduler.decisions import Preemption
from llmtrain_operator.scheduler.jobs import affects_scheduling
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.memory import Queue
from tests.support.examples import examples
from tests.support.operator_harness.observed import PLACEMENT, assignment, pod
from tests.support.operator_harness.scheduling import (
    GPU,
    LEAF,
    as_pending,
    cluster,
    decide,
    fabric,
    in_use,
    nodes,
    record,
    refusal,
    total,
    waiting_job,
)

pytestmark = pytest.mark.unit


sizes = st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2))


@examples(150)
@given(
    st.integers(0, 12),
    st.lists(sizes, max_size=8),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 8)), max_size=6),
    st.randoms(use_true_random=False),
)
def test_never_overcommits_and_never_splits_a_gang(
    count: int,
    wanted: list[tuple[int, int, int]],
    taken: list[tuple[int, int]],
    shuffle: random.Random,
) -> None:
    there = nodes(count)
    in_use = tuple(Usage(f"n{index}", GPU, amount) for index, amount in taken)
    queue = [
        waiting_job(f"job-{i}", size, gpus, priority=priority)
        for i, (size, gpus, priority) in enumerate(wanted)
    ]
    decisions = decide(queue, cluster(there, in_use))
    assert decisions.keys() == {candidate.uid for candidate in queue}
    held = {node.name: sum(u.amount for u in in_use if u.node == node.name) for node in there}
    before = dict(held)
    for candidate in queue:
        decision = decisions[candidate.uid]
        if isinstance(decision, Unschedulable):
            assert decision.reason and 0 < len(decision.message) <= 1024
            continue
        assert len(decision.nodes) == len(set(decision.nodes)) == candidate.request.nodes
        PlacementStatus.from_wire(placement_status(decision).to_wire())
        for name in decision.nodes:
            held[name] += candidate.request.gpus_per_node
    assert all(amount <= max(8, before[name]) for name, amount in held.items())
    shuffled, mixed = list(queue), list(there)
    shuffle.shuffle(shuffled)
    shuffle.shuffle(mixed)
    assert decide(shuffled, cluster(mixed, in_use)) == decisions


def test_a_large_job_is_not_starved_by_small_ones() -> None:
    in_use = (Usage("n0", GPU, 8),)
    decisions = decide(
        [waiting_job("large-0", 4), waiting_job("small-1", 1)], cluster(nodes(4), in_use)
    )
    assert refusal(decisions["large-0"]).reason == "InsufficientGpus"
    behind = refusal(decisions["small-1"])
    assert behind.reason == "WaitingBehindJob" and "ns/large-0" in behind.message


def test_a_job_that_never_fits_blocks_nobody() -> None:
    decisions = decide(
        [waiting_job("huge-0", 99), waiting_job("small-1", 1)], cluster(nodes(4), ())
    )
    assert refusal(decisions["huge-0"]).reason == "InsufficientNodes"
    assert isinstance(decisions["small-1"], Assignment)


def test_jobs_on_other_nodes_are_not_held_back() -> None:
    other = Node("x0", {"pool": "other"}, {GPU: 8})
    in_use = (Usage("n0", GPU, 8),)
    decisions = decide(
        [
            waiting_job("large-0", 4, workers={"nodeSelector": {"pool": "all"}}),
            waiting_job("small-1", 1, workers={"nodeSelector": {"pool": "other"}}),
        ],
        cluster((*nodes(4), other), in_use),
    )
    assert isinstance(decisions["small-1"], Assignment)


def test_priority_goes_first() -> None:
    decisions = decide(
        [waiting_job("old-0", 1), waiting_job("vip-1", 1, priority=5)], cluster(nodes(1), ())
    )
    assert isinstance(decisions["vip-1"], Assignment)
    assert isinstance(decisions["old-0"], Unschedulable)


def test_the_placement_is_told_by_level() -> None:
    [decision] = decide([waiting_job("job-0", 6)], cluster(nodes(8), ())).values()
    assert isinstance(decision, Assignment)
    found = placement_status(decision)
    assert summary(found) == "6 nodes · 2 leaf · 1 spine"
    assert [block["path"] for block in found.to_wire()["blocks"]] == ["s0/l0", "s0/l1"]


def test_fabrics() -> None:
    near = {"name": "node", "nodeLabel": "kubernetes.io/hostname"}
    flat = fabric({"levels": [{"name": "rack", "nodeLabel": LEAF}, near]})
    [decision] = decide([waiting_job("job-0", 2)], cluster(nodes(8), (), flat)).values()
    assert isinstance(decision, Assignment) and "rack" in summary(placement_status(decision))
    absent = as_pending(record("a", topology={"fabric": "nope"}), fabrics=flat)
    assert refusal(absent).reason == "FabricNotFound"
    assert "spec.topology.fabric" in refusal(absent).message
    bad = fabric({"preset": "no-such-preset"})
    assert refusal(as_pending(record("a"), fabrics=bad)).reason == "InvalidFabric"


def test_who_waits() -> None:
    over = [{"type": "Succeeded", "status": "True", "reason": "Completed"}]
    assert as_pending(record("a")) is not None
    assert as_pending(record("a", suspend=True)) is None
    assert as_pending(record("a", {"conditions": over})) is None
    assert as_pending(record("a", {"placement": PLACEMENT})) is None
    moved = as_pending(record("a", {"placement": PLACEMENT, "attempt": 1}))
    assert moved is not None and moved.attempt == 1
    gone = record("a")
    gone.raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert as_pending(gone) is None
    assert as_pending(record("a", model={"preset": "nope"})) is None
    classes = {"high": PriorityRecord("high", 9, False), "usual": PriorityRecord("usual", 3, True)}
    vip = as_pending(record("a", priorityClassName="high"), **classes)
    assert vip is not None and vip.priority == 9
    usual = as_pending(record("a"), **classes)
    assert usual is not None and usual.priority == 3


def test_nothing_counts_twice() -> None:
    placed = record("uid", {"placement": PLACEMENT})
    pods = [pod(0), pod(1, "Pending")]
    once = {("n0", "uid"): 2, ("n1", "uid"): 2}
    assert total(in_use([placed], [], {})) == once
    assert total(in_use([placed], pods, {})) == once
    offer = assignment(0)
    assert total(in_use([record("uid")], [], {"uid": offer})) == once
    assert total(in_use([placed], pods, {"uid": offer})) == once
    # Pods that no job claims any more count until they have ended.
    assert total(in_use([record("uid")], pods, {})) == once
    assert total(in_use([record("uid")], [replace(p, phase="Failed") for p in pods], {})) == {}
    over = [{"type": "Failed", "status": "True", "reason": "x"}]
    assert (
        total(in_use([record("uid", {"placement": PLACEMENT, "conditions": over})], [], {})) == {}
    )


class Copies:
    """Copies that lag behind what is written, as real ones do."""

    def __init__(self) -> None:
        self.records = {"a": record("a"), "b": record("b")}
        self.woken: list[str] = []

    def scheduler(self, count: int) -> Scheduler:
        def world(offers: Mapping[str, Assignment]) -> ClusterState:
            taken = in_use(self.records.values(), [], offers)
            return cluster(nodes(count, gpus=2), tuple(taken))

        def stored(uid: str) -> JobView | None:
            return self.records[uid].view if uid in self.records else None

        def pending() -> Queue:
            found = {uid: as_pending(r) for uid, r in self.records.items()}
            return {uid: job for uid, job in found.items() if job is not None}

        return Scheduler(pending, world, stored, self.woken.append)


async def test_an_offer_is_kept_until_the_copy_shows_it() -> None:
    copies = Copies()
    scheduler = copies.scheduler(2)
    await scheduler.cycle()
    first = scheduler.decision("a")
    assert isinstance(first, Assignment) and isinstance(scheduler.decision("b"), Unschedulable)
    assert sorted(copies.woken) == ["a", "b"]
    assert scheduler.reserve("a", first)
    await scheduler.cycle()
    assert scheduler.decision("a") is first, "the copy does not show it yet"
    copies.records["a"] = record("a", {"placement": placement_status(first).to_wire()})
    await scheduler.cycle()
    assert scheduler.decision("a") is None
    assert isinstance(scheduler.decision("b"), Unschedulable), "the stored placement counts now"
    del copies.records["a"]
    await scheduler.cycle()
    assert isinstance(scheduler.decision("b"), Assignment)


def taken(decision: object) -> Assignment:
    assert isinstance(decision, Assignment)
    return decision


async def test_an_offer_that_nobody_wants_is_dropped() -> None:
    copies = Copies()
    scheduler = copies.scheduler(2)
    await scheduler.cycle()
    copies.records["a"] = record("a", suspend=True)
    assert scheduler.reserve("a", taken(scheduler.decision("a")))
    await scheduler.cycle()
    assert isinstance(scheduler.decision("b"), Unschedulable), (
        "it may be written at this very moment"
    )
    scheduler.release("a")
    await scheduler.cycle()
    assert isinstance(scheduler.decision("b"), Assignment)


async def test_an_assigned_job_whose_fabric_is_deleted_keeps_its_allocation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its status may already be written: start estimates of other jobs count its nodes."""
    copies = Copies()
    scheduler = copies.scheduler(2)
    await scheduler.cycle()
    assert isinstance(scheduler.decision("a"), Assignment)
    assert scheduler.reserve("a", taken(scheduler.decision("a")))
    copies.records["a"] = record("a", topology={"fabric": "deleted"})
    seen: list[ClusterState] = []

    def observe(jobs: Queue, state: ClusterState, earlier: Round) -> Decisions:
        seen.append(state)
        return cycle.decide(jobs, state, earlier)

    monkeypatch.setattr(loop, "decide", observe)
    await scheduler.cycle()
    assert [allocation.uid for allocation in seen[0].allocations] == ["a"]


def by_uid(queue: list[PendingJob]) -> Queue:
    return {job.uid: job for job in queue}


def stored(attempt: int) -> JobView:
    return JobView({}, {}, {"attempt": attempt})


def test_the_end_of_a_back_off_affects_scheduling() -> None:
    """Without a cycle the job would join the queue up to 15 s later."""
    before = record("job", {"attempt": 1, "backoffUntil": "2026-01-01T00:00:00Z"})
    after = record("job", {"attempt": 1})
    assert affects_scheduling(before.view, after.view)
    assert not affects_scheduling(after.view, record("job", {"attempt": 1, "eta": "x"}).view)


async def test_nobody_stops_for_a_job_whose_room_is_gone() -> None:
    """Two stop for a wide job; one has, when a job of more importance comes and takes its node."""
    sitting = {"old-0": "n0", "old-1": "n1"}
    queue = [waiting_job("wide-2", 2, priority=100)]
    attempts = {"old-0": 0, "old-1": 0}

    def world(offers: Mapping[str, Assignment]) -> ClusterState:
        used = [Usage(node, GPU, 8, uid) for uid, node in sitting.items()]
        used += [Usage(n, GPU, 8, uid) for uid, offer in offers.items() for n in offer.nodes]
        allocations = tuple(
            Allocation(uid, "ns", 0, (n,), {GPU: 8}, attempt=attempts[uid])
            for uid, n in sitting.items()
        )
        return cluster(nodes(2), tuple(used), allocations=allocations)

    scheduler = Scheduler(
        lambda: by_uid(queue), world, lambda uid: stored(attempts.get(uid, 0)), lambda _: None
    )
    await scheduler.cycle()
    assert all(isinstance(scheduler.decision(uid), Preemption) for uid in sitting)
    await scheduler.cycle()
    assert refusal(scheduler.decision("wide-2")).reason == "Preempting"
    assert all(isinstance(scheduler.decision(uid), Preemption) for uid in sitting), (
        "it fits after it"
    )
    del sitting["old-0"]
    attempts["old-0"] = 1
    queue.append(waiting_job("urgent-3", 1, priority=1000))
    await scheduler.cycle()
    assert isinstance(scheduler.decision("urgent-3"), Assignment)
    assert refusal(scheduler.decision("wide-2")).reason == "InsufficientGpus"
    assert scheduler.decision("old-1") is None, "its node alone is no room for the wide job"


async def test_a_job_ahead_that_gets_no_place_spares_nobody() -> None:
    """Who stops makes room for whoever is first in the line by then."""
    sitting = {"old-0": "n0"}
    queue = [waiting_job("wants-2", 1, priority=100)]

    def world(offers: Mapping[str, Assignment]) -> ClusterState:
        used = tuple(Usage(node, GPU, 8, uid) for uid, node in sitting.items())
        allocations = tuple(
            Allocation(uid, "ns", 0, (n,), {GPU: 8}, ends_at=1e6) for uid, n in sitting.items()
        )
        return cluster(nodes(1), used, allocations=allocations)

    scheduler = Scheduler(lambda: by_uid(queue), world, lambda uid: stored(0), lambda _: None)
    await scheduler.cycle()
    assert isinstance(scheduler.decision("old-0"), Preemption)
    queue.append(replace(waiting_job("polite-3", 1, priority=1000), can_preempt=False))
    for _ in range(4):
        await scheduler.cycle()
        assert isinstance(scheduler.decision("old-0"), Preemption)


async def test_one_trigger_decides_the_whole_queue_in_cycles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each cycle decides about one job here. Jobs that wait keep their reason meanwhile."""
    queue = by_uid([waiting_job(f"job-{i}", 1 + 8 * (i < 2)) for i in range(5)])
    answered: list[set[str]] = []

    def decide_one(jobs: Queue, state: ClusterState, earlier: Round) -> Decisions:
        found = cycle.decide(jobs, state, earlier)
        answered.append({*found.pending})
        return found

    def world(offers: Mapping[str, Assignment]) -> ClusterState:
        used = [Usage(n, GPU, 8, uid) for uid, offer in offers.items() for n in offer.nodes]
        return cluster(nodes(9), tuple(used))

    monkeypatch.setattr(cycle, "decide_within", partial(decide_within, max_work=1))
    monkeypatch.setattr(loop, "decide", decide_one)
    monkeypatch.setattr(loop, "RESYNC_SECONDS", 1e6)
    scheduler = Scheduler(lambda: queue, world, lambda uid: stored(0), lambda _: None)
    scheduler.trigger()
    task = asyncio.create_task(scheduler.run())
    async with asyncio.timeout(60):
        while len(answered) < 5:
            assert not task.done()
            await asyncio.sleep(0.01)
    task.cancel()
    assert answered == [{uid} for uid in queue]
    assert isinstance(scheduler.decision("job-0"), Assignment), "nine nodes"
    assert refusal(scheduler.decision("job-1")).reason == "InsufficientGpus"


async def test_the_loop_survives_a_broken_cycle() -> None:
    calls = 0

    def pending() -> Queue:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("broken object")
        return {}

    scheduler = Scheduler(pending, lambda _: cluster((), ()), lambda _: None, lambda _: None)
    task = asyncio.create_task(scheduler.run())
    scheduler.trigger()
    async with asyncio.timeout(60):
        while calls < 2:
            await asyncio.sleep(0.05)
    task.cancel()
