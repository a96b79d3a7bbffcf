"""Everything that a decision about one job may look at, gathered at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.cache.records import NodeRecord, PodRecord
from llmtrain_operator.config import NODE_LOST_SECONDS
from llmtrain_operator.planning.assess import Assessment
from llmtrain_operator.scheduler.decisions import Verdict


@dataclass(frozen=True, slots=True)
class CreateError:
    """Why the API server refused a child of the job."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """One job and its surroundings. The same observation always leads to the same plan."""

    now: datetime
    raw: Mapping[str, Any]
    checked: Job | list[Problem]
    pods: tuple[PodRecord, ...] = ()
    """Pods that the job owns; others of the same name or label are not among them."""
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    """The nodes that the job's placement (spares included) and pods name; a missing one is gone."""
    levels: Levels = ()
    """Those of the job's Fabric now; empty where there is none to compare a placement with."""
    assessment: Assessment | None = None
    """What the plan says; None where it has nothing to say now, and the old one stands."""
    verdict: Verdict | None = None
    create_error: CreateError | None = None
    """What the last attempt to create a child ran into, until one succeeds."""
    report: Mapping[str, Any] | None = None
    """The newest answer of rank 0's /status that was not looked at yet."""
    seconds_since_write: float = 1e9
    """Seconds since the last write of the status."""
    node_lost_seconds: float = NODE_LOST_SECONDS

    @property
    def view(self) -> JobView:
        """The job as it is stored."""
        return JobView.of(self.raw)

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as it is stored."""
        return self.view.spec

    @property
    def is_deleting(self) -> bool:
        """Whether the job is being deleted."""
        return self.view.is_deleting

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return self.view.generation

    def is_lost(self, node: str) -> bool:
        """Whether a node is gone, or has not been ready for too long to wait any more."""
        return self.seconds_until_lost(node) <= 0

    def seconds_until_lost(self, node: str) -> float:
        """Seconds until a node counts as lost; infinite for one that is ready."""
        found = self.nodes.get(node)
        if found is None:
            return 0.0
        if found.node.ready:
            return float("inf")
        deadline = parse_time(found.since) + timedelta(seconds=self.node_lost_seconds)
        return max(0.0, (deadline - self.now).total_seconds())
