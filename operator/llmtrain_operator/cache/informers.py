"""The informers of the operator: local copies of all objects that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llmtrain_core.api import labels
from llmtrain_core.devices.records import (
    ClaimRecord,
    ClassRecord,
    SliceRecord,
    claim_record,
    class_record,
    slice_record,
)
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.attempt_record import AttemptRecord, attempt_record
from llmtrain_operator.cache.child_record import ChildRecord, child_record
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, budget_record
from llmtrain_operator.cache.foreign_usage import ForeignUsage
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.job_record import job_record, unreadable_job
from llmtrain_operator.cache.node_devices import (
    DeviceInformers,
    NodeDevices,
    divided,
    pool_key,
    with_claims,
)
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
    COMPUTE_DOMAINS,
    DEVICE_CLASSES,
    DISRUPTION_BUDGETS,
    FABRICS,
    JOBS,
    NODES,
    POD_GROUPS,
    PODS,
    PRIORITY_CLASSES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
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
_ATTEMPT_INDEXES: Mapping[str, Callable[[AttemptRecord], str | None]] = {
    "owner": lambda found: f"{found.namespace}/{found.owner}",
}
_SLICE_INDEXES: Mapping[str, Callable[[SliceRecord], str | None]] = {
    "node": lambda found: found.node,
    "pool": lambda found: pool_key(found.driver, found.pool),
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
    """For Fabrics, PriorityClasses and devices."""
    attempt_object: Callable[[AttemptRecord | None, AttemptRecord | None], None] = (
        lambda _old, _new: None
    )


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
        devices: NodeDevices | None = None,
        *,
        device_claims: bool = False,
        compute_domains: bool = False,
        pod_groups: bool = False,
    ):
        """Watch jobs and their pods in one namespace, or in all of them if it is None."""
        self._cluster = cluster
        self._events = events
        self._on_change = on_change
        self._all: list[Informer[Any]] = []
        self.foreign_usage = ForeignUsage()
        self.unready_nodes = UnreadyNodes()
        self.node_health = node_health or NodeHealth()
        self.devices = devices or NodeDevices()
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
        self.budgets = self._budget_informer(namespace)
        self.children: Mapping[Resource, Informer[ChildRecord]] = {
            kind: self._child_informer(kind, namespace) for kind in KEPT_FIELDS
        }
        self.foreign_pods = self._foreign_pod_informer(namespace)
        if not count_foreign_pods:
            self._all.remove(self.foreign_pods)
        self.device_informers = self._device_informers() if device_claims else None
        has_groups = device_claims and pod_groups
        self.attempt_objects = self._attempt_informers(namespace, compute_domains, has_groups)

    def _informer(
        self,
        name: str,
        selection: Selection,
        decode: Callable[[Raw], R | None],
        on_change: Callable[[R | None, R | None], None],
        indexes: Mapping[str, Callable[[R], str | None]] | None = None,
        damaged: Callable[[Raw, str], R | None] | None = None,
        *,
        optional: bool = False,
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
            optional=optional,
        )
        self._all.append(informer)
        return informer

    def _budget_informer(self, namespace: str | None) -> Informer[BudgetRecord]:
        return self._informer(
            "disruption-budgets",
            Selection(DISRUPTION_BUDGETS, namespace),
            budget_record,
            self._on_change.budget,
            _BUDGET_INDEXES,
        )

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

    def _device_informers(self) -> DeviceInformers:
        """Return the informers of devices. Claims of all namespaces take devices of nodes."""
        slices, classes, claims = map(Selection, (RESOURCE_SLICES, DEVICE_CLASSES, RESOURCE_CLAIMS))
        found = DeviceInformers(
            self._informer(
                "resource-slices",
                slices,
                slice_record,
                self._slice_changed,
                _SLICE_INDEXES,
                optional=True,
            ),
            self._informer(
                "device-classes", classes, class_record, self._class_changed, optional=True
            ),
            self._informer(
                "resource-claims", claims, claim_record, self._claim_changed, optional=True
            ),
        )
        self.devices.follow(found)
        return found

    def _attempt_informers(
        self, namespace: str | None, compute_domains: bool, pod_groups: bool
    ) -> Mapping[Resource, Informer[AttemptRecord]]:
        kinds = (
            ("compute-domains", COMPUTE_DOMAINS, compute_domains),
            ("pod-groups", POD_GROUPS, pod_groups),
        )
        return {kind: self._attempt_informer(name, kind, namespace, on) for name, kind, on in kinds}

    def _attempt_informer(
        self, name: str, kind: Resource, namespace: str | None, enabled: bool
    ) -> Informer[AttemptRecord]:
        informer = self._informer(
            name,
            Selection(kind, namespace, labels=f"{labels.JOB_UID},{labels.ATTEMPT}"),
            attempt_record(kind),
            self._on_change.attempt_object,
            _ATTEMPT_INDEXES,
            optional=True,
        )
        if not enabled:
            self._all.remove(informer)
        return informer

    def _slice_changed(self, old: SliceRecord | None, new: SliceRecord | None) -> None:
        self.devices.slice_changed(old, new)
        self._on_change.other(old, new)

    def _class_changed(self, old: ClassRecord | None, new: ClassRecord | None) -> None:
        self.devices.class_changed(old, new)
        self._on_change.other(old, new)

    def _claim_changed(self, old: ClaimRecord | None, new: ClaimRecord | None) -> None:
        """Follow a claim. A claim that takes devices helps no job, so it starts no cycle."""
        self.devices.claim_changed(old, new)
        if old is not None:
            self._on_change.other(old, new)

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
        """Yield all nodes, with their devices and the findings that have an effect."""
        return map(self._whole_node, self.nodes.values())

    def _whole_node(self, record: NodeRecord) -> Node:
        return self.devices.node(self.node_health.node(record.node))

    def node(self, name: str) -> NodeRecord | None:
        """Return a node by name, with its devices and the findings that have an effect."""
        found = next(iter(self.nodes.by_index("name", name)), None)
        if found is None:
            return None
        node = self._whole_node(found)
        return found if node is found.node else replace(found, node=node)

    def pods_with_claims(self) -> list[PodRecord]:
        """Return all pods of jobs, with what they take by claims."""
        found = {pod.uid: pod for pod in self.pods.values()}
        for name in self.devices.nodes_with_claims:
            for uid, amounts in self._claimed(name)[0].items():
                found[uid] = with_claims(found[uid], amounts)
        return [*found.values()]

    def pods_on(self, node: str) -> list[PodRecord]:
        """Return the pods of jobs on a node, with what they take by claims."""
        by_pod, _ = self._claimed(node)
        found = self.pods.by_index("node", node)
        return [with_claims(pod, by_pod[pod.uid]) if pod.uid in by_pod else pod for pod in found]

    def used_by_foreign(self) -> dict[tuple[str, str], int]:
        """Return what foreign pods and claims use by node and resource."""
        used = dict(self.foreign_usage.used)
        for name in self.devices.nodes_with_claims:
            for resource, amount in self._claimed(name)[1].items():
                used[name, resource] = used.get((name, resource), 0) + amount
        return used

    def used_by_foreign_on(self, node: str, resources: Iterable[str]) -> dict[tuple[str, str], int]:
        """Return what foreign pods and claims use of some resources on a node."""
        used, claimed = self.foreign_usage.used, self._claimed(node)[1]
        return {
            (node, resource): used.get((node, resource), 0) + claimed.get(resource, 0)
            for resource in resources
        }

    def _claimed(self, name: str) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Return what claims take of a node: by pod of a job, and what others take."""
        record = next(iter(self.nodes.by_index("name", name)), None)
        if record is None:
            return {}, {}
        return divided(self.devices.claimed(record.node), self._is_pod_of_job, self._requested)

    def _requested(self, uid: str) -> Mapping[str, int]:
        """Return the resources that a pod requests; none of one that is not known."""
        pod = self.pods.get(uid) or self.foreign_pods.get(uid)
        return {} if pod is None else dict(pod.resources)

    def _is_pod_of_job(self, uid: str) -> bool:
        return self.pods.get(uid) is not None

    def job_of_group(self, uid: str) -> str:
        """Return the UID of the job that owns a PodGroup, or an empty text."""
        group = self.attempt_objects[POD_GROUPS].get(uid)
        job = None if group is None else self.jobs.get(group.owner)
        owns = group is not None and job is not None and job.namespace == group.namespace
        return job.uid if owns and job is not None else ""

    def has_priority_class(self, name: str) -> bool:
        """Return True if a PriorityClass of this name exists."""
        return any(found.name == name for found in self.priority_classes.values())

    def fabric(self, name: str) -> FabricRecord | None:
        """Return a Fabric by name."""
        return next((fabric for fabric in self.fabrics.values() if fabric.name == name), None)
