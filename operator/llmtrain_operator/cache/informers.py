"""The informers of the operator: local copies of all objects that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from llmtrain_core.api import labels
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.child_record import ChildRecord, child_record
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, budget_record
from llmtrain_operator.cache.foreign_usage import ForeignUsage
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.job_record import job_record, unreadable_job
from llmtrain_operator.cache.node_health import NodeHealth
from llmtrain_operator.cache.records import (
    FabricRecord,
    ForeignPod,
    JobRecord,
    NodeRecord,
    PodRecord,
    fabric_record,
    foreign_pod,
    is_followed,
    pod_record,
    priority_record,
)
from llmtrain_operator.cache.unready_nodes import UnreadyNodes
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.informer import EventCounter, Informer, Selection
from llmtrain_operator.kube.resources import (
    DISRUPTION_BUDGETS,
    FABRICS,
    JOBS,
    NODES,
    PODS,
    PRIORITY_CLASSES,
    Resource,
)
from llmtrain_operator.manifests.job_resources import KEPT_FIELDS
from llmtrain_operator.manifests.names import job_of_pod

R = TypeVar("R")

NOT_OURS = f"!{labels.JOB_UID}"
_POD_INDEXES: Mapping[str, Callable[[PodRecord], str | None]] = {
    "job": lambda pod: pod.job,
    "node": lambda pod: pod.node or None,
    "job name": lambda pod: f"{pod.namespace}/{job_of_pod(pod.name)}",
}
_NODE_INDEXES: Mapping[str, Callable[[NodeRecord], str | None]] = {
    "name": lambda record: record.node.name
}
_BUDGET_INDEXES: Mapping[str, Callable[[BudgetRecord], str | None]] = {
    "owner": lambda budget: budget.owner or None,
    "namespace of others": lambda budget: None if budget.owner else budget.namespace,
    "name": lambda budget: f"{budget.namespace}/{budget.name}",
}
_CHILD_INDEXES: Mapping[str, Callable[[ChildRecord], str | None]] = {
    "owner": lambda child: f"{child.namespace}/{child.owner}",
    "name": lambda child: f"{child.namespace}/{child.name}",
}
LIVE_AND_BOUND = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"


@dataclass(frozen=True, slots=True)
class ChangeHandlers:
    """Callbacks for changes. Each gets the old record and the new one."""

    job: Callable[[JobRecord | None, JobRecord | None], None]
    pod: Callable[[PodRecord | None, PodRecord | None], None]
    node: Callable[[NodeRecord | None, NodeRecord | None], None]
    foreign_pod: Callable[[ForeignPod | None, ForeignPod | None], None]
    child: Callable[[ChildRecord | None, ChildRecord | None], None]
    budget: Callable[[BudgetRecord | None, BudgetRecord | None], None]
    other: Callable[[object, object], None]
    """For Fabrics and PriorityClasses."""


class Informers:
    """The informers of all resources, and lookups by name."""

    def __init__(
        self,
        cluster: KubeApi,
        namespace: str | None,
        count_foreign_pods: bool,
        on_change: ChangeHandlers,
        events: EventCounter,
        node_health: NodeHealth | None = None,
    ):
        """Watch jobs and their pods in one namespace, or in all of them if it is None."""
        self._cluster = cluster
        self._events = events
        self._on_change = on_change
        self._all: list[Informer[Any]] = []
        self.foreign_usage = ForeignUsage()
        self.unready_nodes = UnreadyNodes()
        self.node_health = node_health or NodeHealth()
        self.jobs = self._informer(
            "jobs", Selection(JOBS, namespace), job_record, on_change.job, damaged=unreadable_job
        )
        self.pods = self._informer(
            "pods",
            Selection(PODS, namespace, labels=labels.JOB_UID),
            pod_record,
            on_change.pod,
            _POD_INDEXES,
        )
        self.nodes = self._informer(
            "nodes", Selection(NODES), self.node_health.read, self._node_changed, _NODE_INDEXES
        )
        self.fabrics = self._informer("fabrics", Selection(FABRICS), fabric_record, on_change.other)
        self.priority_classes = self._informer(
            "priority-classes", Selection(PRIORITY_CLASSES), priority_record, on_change.other
        )
        self.budgets = self._informer(
            "disruption-budgets",
            Selection(DISRUPTION_BUDGETS, namespace),
            budget_record,
            on_change.budget,
            _BUDGET_INDEXES,
        )
        self.children: Mapping[Resource, Informer[ChildRecord]] = {
            kind: self._child_informer(kind, namespace) for kind in KEPT_FIELDS
        }
        self.foreign_pods = self._foreign_pod_informer(namespace)
        if not count_foreign_pods:
            self._all.remove(self.foreign_pods)

    def _informer(
        self,
        name: str,
        selection: Selection,
        decode: Callable[[Raw], R | None],
        on_change: Callable[[R | None, R | None], None],
        indexes: Mapping[str, Callable[[R], str | None]] | None = None,
        damaged: Callable[[Raw, str], R | None] | None = None,
    ) -> Informer[R]:
        informer = Informer[R](
            name,
            self._cluster,
            selection,
            decode,
            decode_damaged=damaged,
            indexes=indexes,
            on_change=on_change,
            observer=self._events,
        )
        self._all.append(informer)
        return informer

    def _child_informer(self, kind: Resource, namespace: str | None) -> Informer[ChildRecord]:
        return self._informer(
            kind.plural,
            Selection(kind, namespace, labels=labels.JOB_UID),
            child_record(kind),
            self._on_change.child,
            _CHILD_INDEXES,
        )

    def _foreign_pod_informer(self, namespace: str | None) -> Informer[ForeignPod]:
        # With one namespace, pods that other operators of llmtrain manage are foreign as well.
        return self._informer(
            "foreign-pods",
            Selection(PODS, None, NOT_OURS if namespace is None else "", LIVE_AND_BOUND),
            lambda raw: None if is_followed(raw, namespace) else foreign_pod(raw),
            self._foreign_pod_changed,
        )

    def _node_changed(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        self.unready_nodes.change(old, new)
        self.node_health.change(old, new)
        self._on_change.node(old, new)

    def _foreign_pod_changed(self, old: ForeignPod | None, new: ForeignPod | None) -> None:
        self.foreign_usage.change(old, new)
        self._on_change.foreign_pod(old, new)

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter(self._all)

    @property
    def synced(self) -> bool:
        """Whether all copies are complete."""
        return all(informer.synced.is_set() for informer in self)

    def managed_jobs(self) -> Iterator[JobRecord]:
        """Yield the jobs that this operator manages."""
        return (job for job in self.jobs.values() if job.view.is_ours)

    def all_nodes(self) -> Iterator[Node]:
        """Yield all nodes, with the findings about their health that have an effect."""
        return (self.node_health.node(record.node) for record in self.nodes.values())

    def node(self, name: str) -> NodeRecord | None:
        """Return a node by name, with the findings about its health that have an effect."""
        found = next(iter(self.nodes.by_index("name", name)), None)
        return None if found is None else self.node_health.record(found)

    def has_priority_class(self, name: str) -> bool:
        """Return True if a PriorityClass of this name exists."""
        return any(found.name == name for found in self.priority_classes.values())

    def fabric(self, name: str) -> FabricRecord | None:
        """Return a Fabric by name."""
        return next((fabric for fabric in self.fabrics.values() if fabric.name == name), None)
