"""Order of the queue: priority, fairness between namespaces, age; and nobody starves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_core.queueing import Allocation, Assignment, PendingJob, decide
from llmtrain_core.queueing.order import FULL_SHARE_SECONDS, dominant_share, sort_queue
from tests.support.examples import examples
from tests.support.queue_sim import GPU, Arrival, cluster_state, fabric, simulate

pytestmark = pytest.mark.unit
SEEN = fabric(8)
ALL = {GPU: 64}


def waiting(uid: str, nodes: int = 1, **more: object) -> PendingJob:
    return Arrival(uid, nodes, 10, **more).waiting()  # type: ignore[arg-type]


def holder(namespace: str, nodes: int) -> Allocation:
    names = tuple(f"n{index:03}" for index in range(nodes))
    return Allocation(f"of-{namespace}", namespace, 0, names, {GPU: 8})


def names(*args: object, **more: object) -> list[str]:
    return [job.uid for job in sort_queue(*args, **more)]  # type: ignore[arg-type]


def test_priority_goes_before_age_and_fairness() -> None:
    jobs = [waiting("old", at=0), waiting("vip", at=9, priority=1, namespace="greedy")]
    assert names(jobs, [holder("greedy", 8)], ALL) == ["vip", "old"]


def test_who_holds_less_goes_first_among_equals() -> None:
    jobs = [waiting("a", at=0, namespace="rich"), waiting("b", at=60, namespace="poor")]
    assert names(jobs, [holder("rich", 4)], ALL) == ["b", "a"]
    assert names(jobs, [], ALL) == ["a", "b"], "age decides where nobody holds anything"


def test_a_flood_does_not_drown_the_other_namespace() -> None:
    flood = [waiting(f"f{index}", at=float(index), namespace="flood") for index in range(6)]
    late = [waiting(f"l{index}", at=100.0 + index, namespace="late") for index in range(3)]
    order = names([*flood, *late], [], ALL)
    assert order[:6] == ["f0", "l0", "f1", "l1", "f2", "l2"]


def test_waiting_outweighs_a_share_in_the_end() -> None:
    old = waiting("old", at=0.0, namespace="rich")
    for age, first in ((0.4, "new"), (0.6, "old")):
        new = waiting("new", at=age * FULL_SHARE_SECONDS, namespace="poor")
        assert names([old, new], [holder("rich", 4)], ALL)[0] == first


def test_promised_room_goes_before_equals_and_not_before_priority() -> None:
    jobs = [waiting("a", at=0), waiting("b", at=1), waiting("c", at=2, priority=1)]
    assert names(jobs, [], ALL, {"b"}) == ["c", "b", "a"]


def test_the_dominant_share_is_the_largest_of_any_resource() -> None:
    capacity = {GPU: 64, "rdma/hca": 16, "none": 0}
    assert dominant_share({GPU: 16, "rdma/hca": 8, "other": 9}, capacity) == 0.5
    assert dominant_share({}, capacity) == 0.0


jobs_of_teams = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 3600)),
    min_size=1,
    max_size=24,
)


@examples(200)
@given(jobs_of_teams, st.dictionaries(st.sampled_from("abc"), st.integers(1, 4)))
def test_no_turn_goes_to_the_richer_for_more_than_its_age(
    wanted: list[tuple[str, int, int]], held: dict[str, int]
) -> None:
    """Before each turn, whoever has it is poorest, or older by as much as it is richer."""
    jobs = [
        waiting(f"j{index:02}", nodes, at=float(at), namespace=team)
        for index, (team, nodes, at) in enumerate(wanted)
    ]
    order = sort_queue(jobs, [holder(team, nodes) for team, nodes in held.items()], ALL)
    assert sorted(job.uid for job in order) == sorted(job.uid for job in jobs)
    share = {team: 8 * held.get(team, 0) / 64 for team in "abc"}
    for place, job in enumerate(order):
        for rival in order[place + 1 :]:
            richer = share[job.namespace] - share[rival.namespace]
            older = rival.created_at - job.created_at
            assert richer * FULL_SHARE_SECONDS <= older + 1e-3
        share[job.namespace] += job.total_devices[GPU] / 64


def test_a_stream_of_small_jobs_does_not_starve_a_large_one() -> None:
    seen = fabric(4)
    first = [Arrival(f"a{index}", 1, 50 + index, bound=60) for index in range(4)]
    large = Arrival("large", 4, 10, at=1.0, bound=10)
    stream = [Arrival(f"s{i:03}", 1, 30, at=2.0 + i, bound=30) for i in range(120)]
    history = simulate([*first, large, *stream], seen)
    assert history.starts["large"][0] <= 60.0, "those who ran when it came are done by then"
    unknown = [replace(job, bound=None) for job in (*first, large, *stream)]
    history = simulate(unknown, seen)
    assert history.starts["large"][0] == 53.0


def test_a_stream_from_a_poorer_team_does_not_starve_a_richer_one() -> None:
    day = FULL_SHARE_SECONDS
    seen = fabric(4)
    rich = Arrival("rich", 3, 10 * day, namespace="rich")
    again = Arrival("again", 1, day, at=1.0, namespace="rich")
    poor = [Arrival(f"p{i:03}", 1, day / 8, at=i * day / 8, namespace="poor") for i in range(1, 60)]
    history = simulate([rich, replace(poor[0], at=0.0, uid="p"), again, *poor], seen)
    assert 0 < history.starts["again"][0] <= 1.1 * day


traces = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.integers(1, 40),
        st.integers(0, 60),
        st.integers(0, 2),
        st.sampled_from("ab"),
        st.booleans(),
        st.sampled_from([4, 8]),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=50)
@given(traces)
def test_every_job_gets_its_turn(wanted: list[tuple[int, int, int, int, str, bool, int]]) -> None:
    arrivals = [
        Arrival(
            f"j{index:02}",
            nodes,
            length,
            float(at),
            gpus,
            priority,
            team,
            float(length) if known else None,
        )
        for index, (nodes, length, at, priority, team, known, gpus) in enumerate(wanted)
    ]
    history = simulate(arrivals, fabric(6))
    assert history.ends.keys() == {arrival.uid for arrival in arrivals}
    for arrival in arrivals:
        starts = history.starts[arrival.uid]
        assert len(starts) == 1 + history.preempted.get(arrival.uid, 0)
        assert history.ends[arrival.uid] == starts[-1] + arrival.length


@settings(max_examples=50)
@given(traces, st.randoms(use_true_random=False))
def test_nobody_sits_on_anothers_seat(wanted: list[tuple], shuffle: object) -> None:  # type: ignore[type-arg]
    arrivals = [
        Arrival(f"j{index:02}", nodes, length, 0.0, gpus, priority, team)
        for index, (nodes, length, _, priority, team, _, gpus) in enumerate(wanted)
    ]
    jobs = [arrival.waiting() for arrival in arrivals]
    found = decide(jobs, cluster_state(SEEN, 0.0, []))
    held: dict[str, int] = {}
    for job in jobs:
        decision = found[job.uid]
        if isinstance(decision, Assignment):
            for node in decision.placement.nodes:
                held[node.name] = held.get(node.name, 0) + job.request.gpus_per_node
    assert all(amount <= 8 for amount in held.values())
    mixed = list(jobs)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert decide(mixed, cluster_state(SEEN, 0.0, [])) == found
