"""Rounds: cycles of bounded work decide what one long cycle would decide, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core import placement
from llmtrain_core.placement import Placement, Request, Unplaceable
from llmtrain_core.queueing import Allocation, Assignment, PendingJob, QueueDecision, decide
from llmtrain_core.queueing.cycle import decide_within
from llmtrain_core.queueing.round import NEW_ROUND, CycleResult, Round, search_work
from llmtrain_core.topology.inventory import Snapshot
from tests.support.examples import examples
from tests.support.queue_sim import Arrival, cluster_state, fabric, start, wait

pytestmark = pytest.mark.unit

ONE = 1
"""Work that is used up by the first job: each cycle decides about one job."""


class Cluster:
    """A cluster in which jobs that start run on, and others are released by name."""

    def __init__(self, seen: Snapshot, running: Sequence[Allocation] = ()):
        self.seen = seen
        self.running = list(running)
        self.earlier = NEW_ROUND

    def cycle(self, jobs: Sequence[Arrival], max_work: int = ONE) -> CycleResult:
        """Run a cycle about the jobs that do not run yet."""
        held = {allocation.uid for allocation in self.running}
        waiting = [job.waiting() for job in jobs if job.uid not in held]
        state = cluster_state(self.seen, 0.0, self.running)
        found = decide_within(waiting, state, self.earlier, max_work)
        self.earlier = found.round
        by_uid = {job.uid: job for job in jobs}
        for uid, decision in found.decisions.items():
            if isinstance(decision, Assignment):
                self.running.append(by_uid[uid].running(decision.nodes, 0.0))
        return found

    def rounds(self, jobs: Sequence[Arrival], max_work: int = ONE) -> Iterator[CycleResult]:
        """Run cycles until every job has an answer."""
        while True:
            found = self.cycle(jobs, max_work)
            yield found
            if found.complete:
                return

    def release(self, *uids: str) -> None:
        self.running = [held for held in self.running if held.uid not in uids]


def held(uid: str, node: str, until: float | None = None) -> Allocation:
    return Allocation(uid, "ns", 0, (node,), {"nvidia.com/gpu": 8}, until)


arrivals = st.builds(
    Arrival,
    uid=st.just(""),
    nodes=st.integers(1, 5),
    length=st.just(9.0),
    at=st.integers(0, 3).map(float),
    gpus=st.sampled_from([4, 8]),
    priority=st.integers(0, 1),
    namespace=st.sampled_from(["a", "b"]),
    bound=st.sampled_from([None, 20.0, 200.0]),
    require=st.sampled_from([None, "leaf"]),
)


@examples(120)
@given(
    st.lists(arrivals, min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([None, 50.0, 90.0])), max_size=5),
    st.sampled_from([ONE, 1_000, 3_000]),
)
def test_the_cycles_of_a_round_decide_as_one_long_cycle(
    wanted: list[Arrival], taken: list[tuple[int, float | None]], max_work: int
) -> None:
    jobs = [replace(job, uid=f"job-{i:02}") for i, job in enumerate(wanted)]
    running = [
        replace(held(f"old-{i}", f"n{node:03}", until), preemptible=False)
        for i, (node, until) in enumerate(dict(taken).items())
    ]
    seen = fabric(10)
    whole = decide([job.waiting() for job in jobs], cluster_state(seen, 0.0, running))
    parts: dict[str, QueueDecision] = {}
    for found in Cluster(seen, running).rounds(jobs, max_work):
        assert found.decisions and parts.keys().isdisjoint(found.decisions)
        parts |= found.decisions
    assert parts.keys() == whole.keys()
    for uid, decision in whole.items():
        assert isinstance(parts[uid], Assignment) == isinstance(decision, Assignment), uid
        if isinstance(decision, Assignment):
            assert start(parts[uid]).nodes == decision.nodes


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Return the number of searches for a placement since the last call."""
    done = 0

    def place(request: Request, fabric: Snapshot) -> Placement | Unplaceable:
        nonlocal done
        done += 1
        return placement.place(request, fabric)

    def take() -> int:
        nonlocal done
        found, done = done, 0
        return found

    monkeypatch.setattr("llmtrain_core.queueing.cycle.place", place)
    yield take


def test_the_searches_of_a_cycle_are_bounded(searches: Callable[[], int]) -> None:
    jobs = [Arrival(f"job-{i:03}", 2, 9, at=i) for i in range(120)]
    seen = fabric(200)
    allowed = 7
    work = allowed * search_work(jobs[0].waiting(), len(seen.nodes))
    order: list[str] = []
    for found in Cluster(seen).rounds(jobs, work):
        assert 0 < searches() <= allowed
        order += [uid for uid, d in found.decisions.items() if isinstance(d, Assignment)]
    assert order == [job.uid for job in jobs[:100]], "100 jobs of two nodes, oldest first"


def test_a_job_with_no_answer_yet_is_reached_whatever_the_head_costs() -> None:
    """Each job ahead is of another kind and needs its own search. Something ends in each cycle."""
    heads = [
        Arrival(f"head-{i}", 9, 9, at=i, require="leaf", gpus=1 + i % 8, bound=float(i))
        for i in range(8)
    ]
    last = Arrival("last", 1, 9, at=99)
    others = [held(f"old-{i}", f"n{i:03}") for i in range(12)]
    cluster = Cluster(fabric(16), others)
    for number in count(1):
        cluster.release(f"old-{number}")
        if isinstance(cluster.cycle([*heads, last]).decisions.get("last"), Assignment):
            break
        assert number <= len(heads), "one job after another has its turn"


def test_what_is_released_goes_to_the_head_in_the_next_round() -> None:
    running = [held(f"old-{i}", f"n{i:03}", 1000.0) for i in range(4)]
    head = Arrival("head", 4, 9, at=0)
    second = Arrival("second", 2, 9, at=1, bound=10)
    third = Arrival("third", 1, 9, at=2, bound=10)
    jobs = [head, second, third]
    cluster = Cluster(fabric(4), running)
    assert cluster.cycle(jobs).decisions.keys() == {"head"}
    assert cluster.cycle(jobs).decisions.keys() == {"second"}
    cluster.release("old-0", "old-1")
    found = cluster.cycle(jobs)
    assert found.complete and wait(found.decisions["third"])
    assert found.round == NEW_ROUND
    cluster.cycle(jobs)
    assert isinstance(cluster.cycle(jobs).decisions["second"], Assignment)


def test_a_reservation_lasts_until_the_round_is_over() -> None:
    head = Arrival("head", 4, 9, at=0)
    small = [Arrival(f"small-{i}", 1, 900, at=i + 1, bound=900) for i in range(3)]
    cluster = Cluster(fabric(4), [held("old", "n000", 100.0)])
    results = [*cluster.rounds([head, *small])]
    assert len(results) == 4
    for found, job in zip(results[1:], small, strict=True):
        assert wait(found.decisions[job.uid]).behind == ("ns/head",)


def test_a_newcomer_has_its_place_in_the_order_and_does_not_prolong_the_round() -> None:
    jobs = [Arrival(f"job-{i}", 1, 9, at=i) for i in range(4)]
    cluster = Cluster(fabric(9))
    cluster.cycle(jobs)
    urgent = Arrival("urgent", 1, 9, at=50, priority=1)
    assert cluster.cycle([*jobs, urgent]).decisions.keys() == {"urgent"}
    late = [Arrival(f"late-{i}", 1, 9, at=60 + i) for i in range(9)]
    for _ in range(3):
        found = cluster.cycle([*jobs, urgent, *late])
    assert found.round == NEW_ROUND and not found.complete


def test_a_changed_job_is_decided_again() -> None:
    wide, last = Arrival("wide", 9, 9), Arrival("last", 1, 9, at=9)
    cluster = Cluster(fabric(4))
    assert wait(cluster.cycle([wide, last]).decisions["wide"])
    found = cluster.cycle([replace(wide, nodes=2), last])
    assert isinstance(found.decisions["wide"], Assignment)


def test_the_answers_of_a_round_are_not_changed_by_the_next_cycle() -> None:
    head = Arrival("head", 2, 9)
    small = [Arrival(f"small-{i}", 1, 9, at=i + 1, gpus=4) for i in range(3)]
    cluster = Cluster(fabric(2), [held("old", "n000", 100.0)])
    cluster.cycle([head, *small])
    before = cluster.earlier
    reserved = _reserved(before, "head")
    cluster.cycle([head, *small])
    assert _reserved(before, "head") == reserved


def _reserved(found: Round, uid: str) -> dict[tuple[str, str], int]:
    reservation = found.waiting[uid].reservation
    assert reservation is not None
    return dict(reservation.reserved)


def test_no_jobs() -> None:
    empty: list[PendingJob] = []
    found = decide_within(empty, cluster_state(fabric(1), 0.0, []))
    assert found.complete and not found.decisions
