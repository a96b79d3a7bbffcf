"""Every reason to wait is true: without what it names, the job starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from llmtrain_core.queueing import Allocation, ClusterState, decide
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.topology.inventory import Node, Snapshot
from tests.support.queue_sim import GPU, LEAF, Arrival, cluster_state, fabric, start, wait

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Case:
    """A job that waits, for a reason, and the same world without what is in its way."""

    reason: str
    says: str
    job: Arrival
    nodes: Snapshot
    without: Callable[
        [ClusterState, Snapshot, Sequence[Arrival]], tuple[ClusterState, Snapshot, list[Arrival]]
    ]
    running: tuple[Allocation, ...] = ()
    ahead: tuple[Arrival, ...] = ()
    quarantined: frozenset[str] = frozenset()
    nominated: frozenset[str] = frozenset()


def holder(uid: str, *nodes: int, priority: int = 0, **more: object) -> Allocation:
    names = tuple(f"n{index:03}" for index in nodes)
    return Allocation(uid, "ns", priority, names, {GPU: 8}, **more)  # type: ignore[arg-type]


def nobody_runs(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    return cluster_state(nodes, was.now, []), nodes, [*ahead]


def nobody_ahead(was: ClusterState, nodes: Snapshot, _: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    return was, nodes, []


def more_nodes(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    return was, fabric(2 * len(nodes.nodes), gold=len(nodes.nodes)), [*ahead]


def two_leaves(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    return was, fabric(len(nodes.nodes), per_leaf=len(nodes.nodes)), [*ahead]


def all_is_forgiven(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    return replace(was, quarantine=Quarantine()), nodes, [*ahead]


def with_level(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    levels = (replace(LEAF, name="rack"), *nodes.levels[1:])
    return was, replace(nodes, levels=levels), [*ahead]


def repaired(was: ClusterState, nodes: Snapshot, ahead: Sequence[Arrival]):  # type: ignore[no-untyped-def]
    good = (replace(node, ready=True, cordoned=False) for node in nodes.nodes)
    return was, replace(nodes, nodes=tuple(good)), [*ahead]


def broken(count: int, bad: Callable[[Node], Node]) -> Snapshot:
    whole = fabric(count)
    return replace(whole, nodes=(*whole.nodes[:-1], bad(whole.nodes[-1])))


JOB = Arrival("job", 2, 50, at=9.0, bound=50)
CASES = [
    Case("InsufficientGpus", "in use", JOB, fabric(2), nobody_runs, (holder("a", 0),)),
    Case("InsufficientNodes", "needs 2 nodes", JOB, fabric(1), more_nodes),
    Case(
        "InsufficientNodes",
        "1 not ready",
        JOB,
        broken(2, lambda n: replace(n, ready=False)),
        repaired,
    ),
    Case(
        "InsufficientNodes",
        "1 cordoned",
        JOB,
        broken(2, lambda n: replace(n, cordoned=True)),
        repaired,
    ),
    Case("NoMatchingNodes", "no node", replace(JOB, pool="gold"), fabric(2), more_nodes),
    Case(
        "DomainTooSmall",
        "leaf",
        replace(JOB, nodes=3, require="leaf"),
        fabric(4, per_leaf=2),
        two_leaves,
    ),
    Case("UnknownLevel", "rack", replace(JOB, require="rack"), fabric(2), with_level),
    Case(
        "WaitingBehindJob",
        "ns/head",
        replace(JOB, bound=None),
        fabric(4),
        nobody_ahead,
        (holder("a", 0, 1),),
        (Arrival("head", 4, 9, at=1.0),),
    ),
    Case(
        "WaitingBehindJob",
        "ns/head",
        JOB,
        fabric(4),
        nobody_ahead,
        (holder("a", 0, 1, ends_at=20.0),),
        (Arrival("head", 4, 9, at=1.0),),
    ),
    Case(
        "NodesQuarantined",
        "n001 until",
        JOB,
        fabric(2),
        all_is_forgiven,
        quarantined=frozenset({"n001"}),
    ),
    Case(
        "Preempting",
        "1 other job is preempted for it",
        replace(JOB, priority=1),
        fabric(2),
        nobody_runs,
        (holder("low", 0),),
    ),
    Case(
        "Preempting",
        "have not ended yet",
        replace(JOB, priority=1),
        fabric(2),
        nobody_runs,
        (holder("", 0, ends_at=30.0, preemptible=False),),
        nominated=frozenset({"job"}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reason}: {case.says}")
def test_without_the_blocker_it_starts(case: Case) -> None:
    quarantined = dict.fromkeys(case.quarantined, 99.0)
    was = cluster_state(
        case.nodes, 0.0, case.running, quarantined=quarantined, nominated=case.nominated
    )
    queue = [job.waiting() for job in (*case.ahead, case.job)]
    found = wait(decide(queue, was)["job"])
    assert found.reason == case.reason and case.says in found.message
    now, nodes, ahead = case.without(was, case.nodes, case.ahead)
    queue = [job.waiting() for job in (*ahead, case.job)]
    start(decide(queue, replace(now, fabrics={None: nodes}))["job"])
