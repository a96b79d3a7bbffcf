"""Jobs, nodes, and a simulation of a cluster without control delays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.queueing import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    QueueDecision,
    Unschedulable,
    decide,
)
from llmtrain_core.queueing.quarantine import Exclusion, NodeLists, Quarantine
from llmtrain_core.queueing.types import UNKNOWN_START_SECONDS
from llmtrain_core.topology.inventory import Node, Snapshot, Usage
from llmtrain_core.topology.levels import NODE, FabricLevel

GPU = "nvidia.com/gpu"
LEAF = FabricLevel("leaf", "leaf")


def fabric(count: int, gpus: int = 8, per_leaf: int = 4, **pools: int) -> Snapshot:
    """Return nodes n000, n001, ... in leaves; `pools` assigns the last nodes to pools, by count."""
    label = ["all"] * (count - sum(pools.values()))
    label += [name for name, number in pools.items() for _ in range(number)]
    nodes = (
        Node(
            f"n{index:03}", {"leaf": f"l{index // per_leaf:02}", "pool": label[index]}, {GPU: gpus}
        )
        for index in range(count)
    )
    return Snapshot((LEAF, NODE), tuple(nodes))


def request(nodes: int, gpus: int = 8, require: str | None = None, pool: str = "") -> Request:
    selector = {"pool": pool} if pool else {}
    return Request(
        Layout(tensor=gpus, data=nodes), nodes, gpus, require=require, node_selector=selector
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job of a trace; `bound` is the maximum duration that the queue knows, or None."""

    uid: str
    nodes: int
    length: float
    at: float = 0.0
    gpus: int = 8
    priority: int = 0
    namespace: str = "ns"
    bound: float | None = None
    require: str | None = None
    pool: str = ""

    def waiting(self) -> PendingJob:
        wanted = request(self.nodes, self.gpus, self.require, self.pool)
        return PendingJob(
            self.uid,
            self.namespace,
            self.uid,
            self.priority,
            self.at,
            wanted,
            max_duration=self.bound,
        )

    def running(self, nodes: Sequence[str], start: float) -> Allocation:
        end = None if self.bound is None else start + self.bound
        return Allocation(
            self.uid, self.namespace, self.priority, tuple(nodes), {GPU: self.gpus}, end
        )


@dataclass
class History:
    """Result of a simulated trace."""

    starts: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    preempted: dict[str, int] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    """The first start that the queue announced for each job that waited."""
    postponed: dict[str, float] = field(default_factory=dict)
    """The latest start that the queue announced for each job that waited."""
    gpu_seconds: float = 0.0
    """GPU-seconds in use until the last job started."""
    backlog_until: float = 0.0
    """Time of the last start."""


def used_by(running: Iterable[Allocation]) -> dict[tuple[str, str], int]:
    used: dict[tuple[str, str], int] = {}
    for tenant in running:
        for node in tenant.nodes:
            for resource, amount in tenant.resources.items():
                used[node, resource] = used.get((node, resource), 0) + amount
    return used


def usage_by(running: Iterable[Allocation]) -> tuple[Usage, ...]:
    return tuple(Usage(*slot, amount) for slot, amount in used_by(running).items())


def cluster_state(
    seen: Snapshot,
    now: float,
    running: Sequence[Allocation],
    quarantined: Mapping[str, float] | None = None,
    suspects: frozenset[str] = frozenset(),
    nominated: frozenset[str] = frozenset(),
    window: float = UNKNOWN_START_SECONDS,
) -> ClusterState:
    out = {node: Exclusion(until) for node, until in (quarantined or {}).items()}
    return ClusterState(
        now,
        {None: seen},
        usage_by(running),
        tuple(running),
        quarantine=Quarantine(NodeLists(out, suspects)),
        nominated=nominated,
        unknown_start_window=window,
    )


def simulate(
    arrivals: Sequence[Arrival],
    seen: Snapshot,
    running: Mapping[str, Allocation] | None = None,
    ends: Mapping[str, float] | None = None,
    *,
    window: float = UNKNOWN_START_SECONDS,
    quarantined: Callable[[float], Mapping[str, float]] = lambda _now: {},
    changes: Sequence[float] = (),
    overdue: Mapping[str, float] = MappingProxyType({}),
) -> History:
    """Simulate a trace. Jobs of `running` are placed at the start and end at `ends`.

    `quarantined` returns the quarantined nodes at a time; it changes only at `changes`. The first
    pod of a preempted job holds its node for `overdue` seconds more, and no one knows how long.
    """
    history = History()
    jobs = {arrival.uid: arrival for arrival in arrivals}
    coming = sorted(arrivals, key=lambda arrival: (arrival.at, arrival.uid))
    holds, until = dict(running or {}), dict(ends or {})
    waiting: set[str] = set()
    nominated: set[str] = set()
    now = last = 0.0
    while coming or waiting or until:
        moments = [*until.values(), *(arrival.at for arrival in coming[:1])]
        moments += [change for change in changes if change > now and (coming or waiting)]
        if not moments:
            break
        last, now = now, min(moments)
        in_use = sum(sum(tenant.total_devices.values()) for tenant in holds.values())
        history.gpu_seconds += in_use * (now - last) if waiting or coming else 0.0
        for uid in [uid for uid, end in until.items() if end <= now]:
            del until[uid], holds[uid]
            history.ends[uid] = now
        while coming and coming[0].at <= now:
            waiting.add(coming.pop(0).uid)
        state = partial(cluster_state, seen, now, quarantined=quarantined(now), window=window)
        while _round(now, jobs, state, waiting, nominated, holds, until, history, overdue):
            pass
    return history


def _round(
    now: float,
    jobs: Mapping[str, Arrival],
    state: Callable[..., ClusterState],
    waiting: set[str],
    nominated: set[str],
    holds: dict[str, Allocation],
    until: dict[str, float],
    history: History,
    overdue: Mapping[str, float],
) -> bool:
    """Apply the decisions of one cycle. Return True if any job was started or preempted."""
    cluster = state([*holds.values()], nominated=frozenset(nominated))
    decisions = decide([jobs[uid].waiting() for uid in waiting], cluster)
    changed = False
    for uid, decision in decisions.items():
        if isinstance(decision, Assignment):
            names = [node.name for node in decision.placement.nodes]
            holds[uid], until[uid] = jobs[uid].running(names, now), now + jobs[uid].length
            waiting.discard(uid)
            nominated.discard(uid)
            history.starts.setdefault(uid, []).append(now)
            history.backlog_until = now
            changed = True
    for uid, decision in decisions.items():
        if isinstance(decision, Assignment):
            continue
        if decision.starts_at is not None:
            history.promised.setdefault(uid, decision.starts_at)
            latest = history.postponed.get(uid, 0.0)
            history.postponed[uid] = max(latest, decision.starts_at)
        for victim in decision.victims:
            nominated.add(uid)
            held = holds.pop(victim)
            del until[victim]
            if victim in overdue:
                ending = f"{victim}-{now}"
                holds[ending] = replace(
                    held, uid="", nodes=held.nodes[:1], ends_at=None, preemptible=False
                )
                until[ending] = now + overdue[victim]
            waiting.add(victim)
            history.preempted[victim] = history.preempted.get(victim, 0) + 1
            changed = True
    return changed


def start(decision: QueueDecision) -> Assignment:
    assert isinstance(decision, Assignment), decision
    return decision


def wait(decision: QueueDecision) -> Unschedulable:
    assert isinstance(decision, Unschedulable), decision
    return decision
