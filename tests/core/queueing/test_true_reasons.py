"""The reason of every waiting job is true on any cluster: without what is named, it starts.

The same question as in test_reasons.py, asked of crowds that nobody thought of beforehand: pools,
required domains, parts of nodes, quarantines, and several jobs ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.queueing import (
    Allocation,
    Assignment,
    ClusterState,
    QueueDecision,
    Unschedulable,
    decide,
)
from llmtrain_core.topology.inventory import Snapshot
from tests.support.examples import examples
from tests.support.queue_sim import GPU, Arrival, cluster_state, fabric, start, wait

pytestmark = pytest.mark.unit
OUT_UNTIL = 50.0


@dataclass(frozen=True)
class Crowd:
    """A cluster, who runs on it, and who waits."""

    nodes: Snapshot
    running: tuple[Allocation, ...]
    waiting: tuple[Arrival, ...]
    out: frozenset[str] = frozenset()
    """Nodes in quarantine."""
    nominated: frozenset[str] = frozenset()

    @property
    def state(self) -> ClusterState:
        out = dict.fromkeys(self.out, OUT_UNTIL)
        return cluster_state(
            self.nodes, 0.0, self.running, quarantined=out, nominated=self.nominated, window=50.0
        )

    def decide(self) -> dict[str, QueueDecision]:
        return decide([job.waiting() for job in self.waiting], self.state)

    def without(self, keys: Sequence[str]) -> Crowd:
        """The same, but these jobs do not wait any more."""
        rest = tuple(job for job in self.waiting if f"{job.namespace}/{job.uid}" not in keys)
        return replace(self, waiting=rest)

    def only(self, uid: str) -> tuple[Arrival, ...]:
        return tuple(job for job in self.waiting if job.uid == uid)

    def in_pool(self, uid: str, nodes: Sequence[str]) -> bool:
        """Whether a job's selector takes all of these nodes."""
        pool = self.only(uid)[0].pool
        return all(
            pool in ("", node.labels["pool"]) for node in self.nodes.nodes if node.name in nodes
        )

    def usable(self, nodes: Sequence[str], uid: str) -> Crowd:
        """The same, but nothing keeps this job off these nodes: no tenant, no selector."""
        pool = self.only(uid)[0].pool
        mended = tuple(
            replace(node, labels={**node.labels, "pool": pool or node.labels["pool"]})
            if node.name in nodes
            else node
            for node in self.nodes.nodes
        )
        rest = tuple(tenant for tenant in self.running if not {*tenant.nodes} & {*nodes})
        seen = replace(self.nodes, nodes=mended)
        return replace(self, nodes=seen, running=rest, out=self.out - {*nodes})

    def settled(self) -> Crowd:
        """The same, once all who can start have started."""
        crowd = self
        while True:
            found = crowd.decide()
            starts = {uid: d for uid, d in found.items() if isinstance(d, Assignment)}
            if not starts:
                return crowd
            jobs = [job for job in crowd.waiting if job.uid in starts]
            placed = {job.uid: [n.name for n in starts[job.uid].placement.nodes] for job in jobs}
            more = (job.running(placed[job.uid], 0.0) for job in jobs)
            rest = tuple(job for job in crowd.waiting if job.uid not in starts)
            crowd = replace(crowd, running=(*crowd.running, *more), waiting=rest)


ends = st.sampled_from([None, 20.0, 60.0, 200.0])
priorities = st.sampled_from([0, 0, 1, 5])


@st.composite
def crowds(draw: st.DrawFn, namespaces: Sequence[str] = ("ns",)) -> Crowd:
    teams = st.sampled_from(namespaces)
    count = draw(st.sampled_from([4, 6, 8, 12]))
    gold = draw(st.sampled_from([0, 0, 1, count // 2]))
    seen = fabric(count, per_leaf=draw(st.integers(2, 4)), **({"gold": gold} if gold else {}))
    free = {node.name: 8 for node in seen.nodes}
    running = []
    for index in range(draw(st.integers(0, 5))):
        gpus, nodes = draw(st.sampled_from([4, 8])), draw(st.integers(1, 3))
        names = [name for name, left in free.items() if left >= gpus]
        if len(names) < nodes:
            continue
        chosen = draw(st.permutations(names))[:nodes]
        for name in chosen:
            free[name] -= gpus
        tenant = Allocation(
            f"r{index}", draw(teams), draw(priorities), tuple(chosen), {GPU: gpus}, draw(ends)
        )
        running.append(tenant)
    waiting = [
        Arrival(
            f"j{index}",
            draw(st.integers(1, count // 2 + 1)),
            10.0,
            at=float(index),
            gpus=draw(st.sampled_from([4, 8])),
            priority=draw(st.sampled_from([0, 0, 1])),
            namespace=draw(teams),
            bound=draw(st.sampled_from([None, 10.0, 30.0, 100.0, 500.0])),
            require=draw(st.sampled_from([None, None, "leaf"])),
            pool=draw(st.sampled_from(["", "", "", "all", "gold"])),
        )
        for index in range(draw(st.integers(1, 7)))
    ]
    out = draw(st.sets(st.sampled_from(sorted(free)), max_size=2))
    return Crowd(seen, tuple(running), tuple(waiting), frozenset(out)).settled()


def without_what_is_named(crowd: Crowd, uid: str, told: Unschedulable) -> Crowd | None:
    """The same without what this job was told of; None where only more nodes would help."""
    alone = crowd.without([*told.behind, *told.ahead])
    match told.reason:
        case "WaitingBehindJob":
            assert told.behind, "nobody is named"
            return alone
        case "NodesQuarantined":
            return replace(alone, out=frozenset())
        case "Preempting":
            rest = tuple(t for t in alone.running if t.uid not in told.victims)
            return replace(alone, running=rest, nominated=frozenset({uid}))
        case _ if not told.blockers:
            return None
        case "InsufficientGpus" | "DomainTooSmall" if crowd.in_pool(uid, told.blockers):
            return alone.usable(told.blockers, uid)
        case _:
            # Others who want the nodes that are changed are not in this job's way as long as
            # it cannot use them.
            return replace(crowd, waiting=crowd.only(uid)).usable(told.blockers, uid)


@examples(200)
@given(crowds())
def test_without_what_is_named_it_starts(crowd: Crowd) -> None:
    for uid, told in crowd.decide().items():
        assert isinstance(told, Unschedulable)
        then = without_what_is_named(crowd, uid, told)
        if then is not None:
            start(then.decide()[uid])


@examples(200)
@given(crowds(namespaces=("ns", "ml")))
def test_who_takes_the_turn_of_one_that_left_is_named_in_its_stead(crowd: Crowd) -> None:
    """A job that leaves changes its team's share, so another of its team may go before."""
    for uid in crowd.decide():
        then = crowd
        while then.only(uid):
            told = wait(then.decide()[uid])
            after = without_what_is_named(then, uid, told)
            if after is None:
                break
            assert after != then, f"{told.message}: nothing is named that is there"
            then = after.settled()
