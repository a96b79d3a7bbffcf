"""The input of a decision about one job, read at one instant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.attempt_record import AttemptRecord
from llmtrain_operator.cache.child_record import ChildRecord
from llmtrain_operator.cache.disruption_budgets import BudgetRecord
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import NodeRecord, PodRecord
from llmtrain_operator.config import (
    DRAIN_TIMEOUT_SECONDS,
    NODE_LOST_SECONDS,
    START_RESERVATION_SECONDS,
)
from llmtrain_operator.planning.assessment import Assessment
from llmtrain_operator.progress.link_monitor import JobLinks
from llmtrain_operator.scheduler.decisions import JobDecision
from llmtrain_operator.scheduler.held_nodes import held_nodes


@dataclass(frozen=True, slots=True)
class CreateError:
    """Why the API server rejected a child object of the job."""

    reason: str
    message: str
    since: datetime | None = None
    """When the first of these rejections in a row was observed."""
    attempt: int = 0
    """The attempt of the job whose object it was."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One job with its pods and nodes. The same observation always leads to the same actions."""

    now: datetime
    raw: Mapping[str, Any]
    checked: Job | list[Problem]
    pods: tuple[PodRecord, ...] = ()
    """Pods that the job owns. Other pods with its labels are not included."""
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    """Nodes of the placement (spares included) and of the pods. Deleted nodes are missing."""
    levels: Levels = ()
    """Current levels of the job's Fabric; empty if the job has no placement or no Fabric."""
    assessment: Assessment | None = None
    """Current plan of the job; None if it cannot be computed now, so that the old plan stays."""
    taken_spares: frozenset[str] = frozenset()
    """Spare nodes of the placement that other jobs have got."""
    start_obstacles: Callable[[Node], Sequence[str]] = lambda _node: ()
    """Why a pod of the job cannot start on a node now; nothing if it can. A function, because it is
    asked only before pods start, and a large job has many nodes."""
    budget: BudgetRecord | None = None
    """The job's own PodDisruptionBudget."""
    covering_budget: str = ""
    """Name of a PodDisruptionBudget of another owner that selects pods of the job."""
    decision: JobDecision | None = None
    pod_events: Mapping[str, str] = field(default_factory=dict)
    """Why pods do not start, from their Events, by UID of the pod."""
    create_error: CreateError | None = None
    """Error of the last attempt to create child objects; None after a success."""
    children: tuple[ChildRecord, ...] | None = None
    """Objects that the job owns besides its pods; None if the caches may lack the last writes."""
    gang_key: str | None = field(default=None, repr=False)
    """Key of the gang of the attempt; empty if it has none, None if it may get a new one."""
    attempt_objects: tuple[AttemptRecord, ...] = ()
    """ComputeDomains, and PodGroups with claims, that the job owns."""
    report: Mapping[str, Any] | None = None
    """Newest response of /status of rank 0's pod; each response is observed once."""
    links: JobLinks = field(default_factory=JobLinks)
    """What is known of the network links of the job."""
    seconds_known: float = 1e9
    """Seconds since this process saw the job for the first time."""
    seconds_since_write: float = 1e9
    """Seconds since the last write of the status."""
    unready_seconds: Mapping[str, float] = field(default_factory=dict)
    """For how long this process has seen each node not ready."""
    seconds_since_failure: float = 0.0
    """Seconds since this process first saw a failed pod of the attempt; 0 if there is none."""
    refused_seconds: Mapping[str, float] = field(default_factory=dict)
    """For how long this process has seen kube-scheduler refuse each pod, by its UID."""
    missing_seconds: Mapping[str, float] = field(default_factory=dict)
    """For how long this process has seen each pod wait for a missing object, by its UID."""
    node_lost_seconds: float = NODE_LOST_SECONDS
    """Seconds after which a node that is not ready counts as lost."""
    shares_nodes: bool = False
    """Whether other operators may place jobs on the same nodes."""
    start_reservation: float = START_RESERVATION_SECONDS
    """Seconds for which a placement keeps nodes without bound pods."""
    drain_timeout: float = DRAIN_TIMEOUT_SECONDS
    """Seconds from the drain of a node until the pods of a gang may be evicted."""

    @property
    def current_create_error(self) -> CreateError | None:
        """The error of the current attempt. Each attempt tries again."""
        error = self.create_error
        return error if error is not None and error.attempt == self.view.attempt else None

    @property
    def held_nodes(self) -> tuple[str, ...]:
        """Nodes of the placement that the job still holds."""
        return held_nodes(self.view, self.pods, self.now.timestamp(), self.start_reservation)

    @property
    def view(self) -> JobView:
        """The stored job."""
        return JobView.of(self.raw)

    def obstacles(self, node: str) -> Sequence[str]:
        """Return why a pod of the job cannot start on a node now; nothing if it can."""
        found = self.nodes.get(node)
        return ("gone",) if found is None else self.start_obstacles(found.node)

    def is_lost(self, node: str) -> bool:
        """Return True if a node is deleted or was seen not ready for `node_lost_seconds`."""
        return self.seconds_until_lost(node) <= 0

    def seconds_until_lost(self, node: str) -> float:
        """Return the seconds until a node counts as lost; infinity if it is ready."""
        found = self.nodes.get(node)
        if found is None:
            return 0.0
        if found.node.ready:
            return float("inf")
        return max(0.0, self.node_lost_seconds - self.unready_seconds.get(node, 0.0))
