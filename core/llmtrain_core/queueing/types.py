"""The queue as its policies see it: who waits, who runs, and what is decided about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement import Placement, Request
from llmtrain_core.topology.inventory import Snapshot

Slot = tuple[str, str]
"""Node and resource."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for its place."""

    uid: str
    namespace: str
    name: str
    priority: int
    since: float
    """Creation time, in seconds since the epoch."""
    request: Request
    fabric: Snapshot
    """All nodes and levels as the job's Fabric shows them; what is in use there is not read."""
    duration: float | None = None
    """Seconds that it will hold its nodes at most; None: nobody knows."""
    expected: float | None = None
    """Seconds that it will hold its nodes as planned or measured: for the forecast only."""
    preempts: bool = True
    """Whether lower priorities may be stopped for it (`preemptionPolicy` of its class)."""
    avoided: frozenset[str] = frozenset()
    """Nodes that failed under it: others are tried first."""

    @property
    def key(self) -> str:
        """`namespace/name`, as shown to users."""
        return f"{self.namespace}/{self.name}"

    @property
    def size(self) -> int:
        """Nodes that it takes, spare ones included."""
        return self.request.nodes + self.request.spares

    @property
    def takes(self) -> dict[str, int]:
        """What it takes on each of its nodes."""
        return {self.request.gpu_resource: self.request.gpus_per_node, **self.request.extra}

    @property
    def total(self) -> dict[str, int]:
        """What it takes in all."""
        return {resource: amount * self.size for resource, amount in self.takes.items()}


@dataclass(frozen=True, slots=True)
class Running:
    """Somebody who holds nodes: a job, or pods that are on their way out."""

    uid: str
    namespace: str
    priority: int
    nodes: tuple[str, ...]
    takes: Mapping[str, int]
    """What it holds on each of its nodes."""
    ends_at: float | None = None
    """When its nodes are free at the latest, or as measured; None: nobody knows."""
    lost_seconds: float = 0.0
    """Work that would have to be done again: seconds since its last checkpoint."""
    preemptible: bool = True

    @property
    def total(self) -> dict[str, int]:
        """What it holds in all."""
        return {resource: amount * len(self.nodes) for resource, amount in self.takes.items()}

    @property
    def lost_work(self) -> float:
        """Device-seconds that would be lost with it."""
        return self.lost_seconds * sum(self.total.values())


@dataclass(frozen=True, slots=True)
class Scene:
    """The cluster at one instant."""

    now: float
    """Seconds since the epoch."""
    used: Mapping[Slot, int] = field(default_factory=dict)
    """All that is in use, whoever holds it."""
    running: tuple[Running, ...] = ()
    """Who of those will, or may be made to, give what back."""
    quarantined: Mapping[str, float] = field(default_factory=dict)
    """Nodes that are out for everybody, and until when."""
    suspects: frozenset[str] = frozenset()
    """Nodes that everybody tries last."""
    promised: frozenset[str] = frozenset()
    """Jobs for which others were stopped: the room is theirs before their equals'."""


@dataclass(frozen=True, slots=True)
class Start:
    """The whole gang starts now."""

    placement: Placement
    takes: Mapping[str, int]
    backfilled: bool = False
    """Whether it goes before a job that is ahead of it and cannot start yet."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The job waits."""

    reason: Reason
    message: str
    """What stands in its way: without that, it starts."""
    starts_at: float | None = None
    """When it starts if all goes as foreseen; None: it depends on jobs without a known end."""
    victims: tuple[str, ...] = ()
    """UIDs of the jobs that stop for it, all of them."""
    behind: tuple[str, ...] = ()
    """Keys of the jobs ahead for which the room is kept."""
    ahead: tuple[str, ...] = ()
    """Keys of the other jobs ahead that could use the same nodes: what becomes free is theirs."""
    blockers: tuple[str, ...] = ()
    """The fewest nodes that would do if nothing held them back."""


Decision = Start | Wait
