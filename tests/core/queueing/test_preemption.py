"""Preemption: whole gangs, the fewest, the cheapest, and never for nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.queueing import Allocation, PendingJob, decide
from llmtrain_core.queueing.capacity import FreeCapacity, request_class
from llmtrain_core.queueing.preemption import UNADMITTED_SECONDS, find_victims
from llmtrain_core.topology.inventory import Snapshot
from tests.support.examples import examples
from tests.support.queue_sim import (
    GPU,
    Arrival,
    cluster_state,
    fabric,
    request,
    simulate,
    start,
    used_by,
    wait,
)

pytestmark = pytest.mark.unit


def tenant(
    uid: str, *nodes: int, priority: int = 0, lost: float = 0.0, gpus: int = 8
) -> Allocation:
    names = tuple(f"n{index:03}" for index in nodes)
    return Allocation(uid, "ns", priority, names, {GPU: gpus}, lost_seconds=lost)


VIP = Arrival("vip", 2, 10, priority=5)


def stopped_for(job: Arrival, seen: Snapshot, *running: Allocation) -> tuple[str, ...]:
    return wait(decide([job.waiting()], cluster_state(seen, 0.0, running))["vip"]).victims


def test_the_fewest_then_the_cheapest_stop() -> None:
    seen = fabric(4)
    large, small, other = tenant("l", 0, 1, lost=900), tenant("s", 2), tenant("t", 3)
    assert stopped_for(VIP, seen, large, small, other) == ("l",), "one job instead of two"
    costly, cheap = tenant("x", 0, 1, lost=50), tenant("y", 2, 3, lost=40)
    assert stopped_for(VIP, seen, costly, cheap) == ("y",)
    low, lower = tenant("x", 0, 1, priority=1), tenant("y", 2, 3, priority=0)
    assert stopped_for(VIP, seen, low, lower) == ("y",)


def test_only_strictly_lower_priorities_stop() -> None:
    seen = fabric(2)
    assert stopped_for(VIP, seen, tenant("equal", 0, 1, priority=5)) == ()
    assert stopped_for(VIP, seen, tenant("higher", 0, 1, priority=6)) == ()
    assert stopped_for(VIP, seen, tenant("lower", 0, 1, priority=4)) == ("lower",)
    leaving = replace(tenant("lower", 0, 1), preemptible=False)
    assert stopped_for(VIP, seen, leaving) == ()


def test_a_job_that_is_not_admitted_leaves_its_nodes_to_others() -> None:
    seen = fabric(2)
    held = replace(tenant("held", 0, 1, priority=5, lost=900), unadmitted_since=0.0)
    assert stopped_for(VIP, seen, held) == ("held",)
    assert stopped_for(VIP, seen, replace(held, priority=6)) == (), "it would take them back"
    polite = replace(VIP.waiting(), can_preempt=False)
    assert victims_at(0.0, polite, seen, held) == ("held",), "nothing that runs is stopped"
    alike = replace(VIP.waiting(), awaits_admission=True)
    assert victims_at(UNADMITTED_SECONDS - 1, alike, seen, held) == ()
    assert victims_at(UNADMITTED_SECONDS, alike, seen, held) == ("held",)
    assert victims_at(0.0, alike, seen, replace(held, priority=4)) == ("held",)


def victims_at(
    now: float, job: PendingJob, seen: Snapshot, *running: Allocation
) -> tuple[str, ...]:
    return wait(decide([job], cluster_state(seen, now, running))[job.uid]).victims


def test_nobody_stops_where_the_gang_would_not_fit() -> None:
    seen = fabric(3)
    assert stopped_for(VIP, seen, tenant("a", 0), tenant("b", 1, 2, priority=5)) == ()
    near = replace(VIP, require="leaf")
    halves = fabric(4, per_leaf=2)
    running = (tenant("a", 0), tenant("b", 1, priority=9), tenant("c", 2), tenant("d", 3))
    assert stopped_for(near, halves, *running) == ("c", "d"), "the leaf of b is no use"


def test_a_class_that_never_preempts_waits() -> None:
    seen = fabric(2)
    polite = replace(VIP.waiting(), can_preempt=False)
    found = wait(decide([polite], cluster_state(seen, 0.0, [tenant("low", 0, 1)]))["vip"])
    assert found.victims == () and found.reason == "InsufficientGpus"


def test_nobody_stops_for_a_job_that_starts_soon_anyway() -> None:
    seen = fabric(2)
    ending = replace(tenant("low", 0, 1), ends_at=20.0)
    assert stopped_for(VIP, seen, ending) == ()
    assert stopped_for(VIP, seen, replace(ending, ends_at=200.0)) == ("low",)


def test_the_room_is_kept_for_whom_it_was_made() -> None:
    seen = fabric(2)
    leaving = replace(tenant("low", 0, 1), ends_at=30.0, preemptible=False)
    rival = Arrival("rival", 1, 5, priority=5, namespace="empty", bound=5.0)
    jobs = [VIP.waiting(), rival.waiting()]
    found = decide(jobs, cluster_state(seen, 0.0, [leaving], nominated=frozenset({"vip"})))
    assert wait(found["vip"]).reason == "Preempting"
    half = replace(leaving, nodes=("n001",))
    found = decide(jobs, cluster_state(seen, 0.0, [half], nominated=frozenset({"vip"})))
    assert wait(found["vip"]).starts_at == 30.0
    assert start(found["rival"]).backfilled, "it is gone before the room is complete"
    long = replace(rival, bound=None)
    found = decide(
        [VIP.waiting(), long.waiting()],
        cluster_state(seen, 0.0, [half], nominated=frozenset({"vip"})),
    )
    assert wait(found["rival"]).behind == ("ns/vip",)


def test_a_stopped_job_goes_on_later() -> None:
    low = Arrival("low", 2, 100, at=0.0)
    vip = replace(VIP, at=10.0)
    history = simulate([low, vip], fabric(2))
    assert history.starts == {"low": [0.0, 20.0], "vip": [10.0]}
    assert history.preempted == {"low": 1}


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Snapshot, int, int, str | None, list[Allocation]]:
    count = draw(st.integers(1, 6))
    free = {f"n{index:03}": 8 for index in range(count)}
    running = []
    for index in range(draw(st.integers(0, 6))):
        gpus = draw(st.sampled_from([4, 8]))
        names = [name for name, left in free.items() if left >= gpus]
        wanted = draw(st.integers(1, 3))
        if len(names) < wanted:
            continue
        chosen = draw(st.permutations(names))[:wanted]
        for name in chosen:
            free[name] -= gpus
        lost = draw(st.sampled_from([0.0, 10.0, 25.0, 40.0]))
        running.append(
            Allocation(f"r{index}", "ns", 0, tuple(chosen), {GPU: gpus}, lost_seconds=lost)
        )
    nodes = draw(st.integers(1, count))
    gpus, level = draw(st.sampled_from([4, 8])), draw(st.sampled_from([None, "leaf"]))
    return fabric(count, per_leaf=3), nodes, gpus, level, running


@examples(300)
@given(crowds())
def test_against_every_set_of_victims(
    case: tuple[Snapshot, int, int, str | None, list[Allocation]],
) -> None:
    seen, nodes, gpus, level, running = case
    requests = request_class(request(nodes, gpus, level), seen)

    def fits(chosen: tuple[Allocation, ...]) -> bool:
        left = used_by([job for job in running if job not in chosen])
        by_domain: dict[tuple[str, ...], int] = {}
        for node in seen.nodes:
            if 8 - left.get((node.name, GPU), 0) >= gpus:
                domain = seen.path(node)[: 1 if level else 0]
                by_domain[domain] = by_domain.get(domain, 0) + 1
        return max(by_domain.values(), default=0) >= nodes

    if fits(()):
        return
    sets = (c for size in range(1, len(running) + 1) for c in combinations(running, size))
    best = min(((len(c), sum(job.lost_work for job in c)) for c in sets if fits(c)), default=None)
    found = find_victims(
        requests, nodes, FreeCapacity(used_by(running)), running, lambda _chosen: True
    )
    assert (found and (len(found), sum(job.lost_work for job in found))) == best
    assert found is None or fits(found)
