"""Records of pods, nodes, jobs and other objects: the fields that the operator reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import inf

from llmtrain_core.api import labels
from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.node_health import DEFAULT_TABLE, HealthTable
from llmtrain_core.topology.inventory import Node, node_from_raw
from llmtrain_core.topology.label_presets import levels_of
from llmtrain_core.topology.levels import Levels
from llmtrain_core.topology.links import Links, links_of
from llmtrain_core.topology.resources import (
    compact,
    foreign_requests,
    is_device,
    pod_requests,
)
from llmtrain_core.validation.problem import Problem
from llmtrain_operator.cache.job import JobView, Raw
from llmtrain_operator.cache.pod_state import ENDED_PHASES, read_state, seconds_of

STUCK_SECONDS = 120.0
"""A pod that exists this long after its grace period is not waited for any more."""


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod of a job."""

    uid: str
    name: str
    namespace: str
    job: str
    """UID of the job that its label names."""
    owner: str
    """UID of the controller that owns it. Only the owner decides whose pod it is."""
    attempt: int
    index: int
    node: str
    """The node that it is bound to, or pinned to by affinity."""
    bound: bool
    """Whether kube-scheduler has bound it."""
    phase: str
    """Phase of the pod; once the trainer has ended, its result (Succeeded or Failed)."""
    ready: bool
    deleting: bool
    reason: str
    """Reason of the pod's end (Evicted, ...), or of the state of its trainer."""
    disruption: str
    """Why the cluster ended it (Evicted, NodeShutdown, ...); empty otherwise."""
    message: str
    exit_code: int | None
    finished: str
    """When its trainer ended."""
    address: str
    resources: tuple[tuple[str, int], ...]
    """Everything that it requests of its node, as kube-scheduler counts it."""
    gated: bool = False
    """Whether it has a scheduling gate."""
    refused_since: str = ""
    """Since when kube-scheduler refuses it; empty if it has not, or preempts others for it."""
    evicted_by_queue: bool = False
    ends_by: float = 0.0
    """Unix time at which its grace period ends; 0 if it is not being deleted."""
    rejected: bool = False
    """Whether the kubelet rejected it: it failed before a container started."""
    over_limit: bool = False
    """Whether the kubelet evicted it for a limit of its own, not for pressure on the node."""
    bound_at: float = 0.0
    """Unix time at which kube-scheduler bound it; 0 if it is not bound."""
    setting_up: bool = False
    """Whether the kubelet says that volumes and network of the pod are not ready yet. An image is
    pulled after that."""
    has_sidecar: bool = False
    """Whether other containers, such as those that a webhook adds, outlive the trainer."""
    failed_init: str = ""
    """Name of the init container of the job that failed; exit code and message are its own."""

    @property
    def trainer_ended(self) -> bool:
        """Whether its trainer has terminated. Other containers do not decide about the job."""
        return self.phase in ENDED_PHASES

    @property
    def ended(self) -> bool:
        """Whether all of its containers have terminated, so that it holds no resources."""
        return self.trainer_ended and not self.has_sidecar

    @property
    def started(self) -> bool:
        """Whether its containers have started."""
        return self.phase not in ("Pending", "Unknown", "")

    def seconds_until_overdue(self, now: float, patience: float = 0.0) -> float:
        """Return the seconds from `now`, in Unix time, until its grace period and `patience` end.

        At most 0 if they have ended; infinity if it is not being deleted.
        """
        return self.ends_by + patience - now if self.deleting and self.ends_by else inf

    def is_stuck(self, now: float) -> bool:
        """Return True if it should have ended long before `now`, in Unix time."""
        return self.seconds_until_overdue(now, STUCK_SECONDS) <= 0

    def belongs_to(self, job: JobRecord) -> bool:
        """Return True if the job owns it. An owner must be in the same namespace."""
        return self.owner == job.uid and self.namespace == job.namespace


@dataclass(frozen=True, slots=True)
class ForeignPod:
    """A bound pod that is not managed by this operator, and what it requests."""

    node: str
    resources: tuple[tuple[str, int], ...]

    @property
    def has_devices(self) -> bool:
        """Whether it requests GPUs or other devices."""
        return any(is_device(name) for name, _ in self.resources)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, and the time of the last change of its readiness."""

    node: Node
    since: str
    """An API timestamp of another machine: it shows a change, and is compared with no clock."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job: what is kept of the object, and the view through which it is read."""

    uid: str
    namespace: str
    name: str
    version: int
    raw: Raw
    problem: Problem | None = None
    """Why only a part of the spec is kept."""
    view: JobView = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "view", JobView.of(self.raw))


@dataclass(frozen=True, slots=True)
class FabricRecord:
    """A Fabric: its levels, or why it is invalid."""

    name: str
    levels: Levels
    problem: str
    links: Links = field(default_factory=Links)


@dataclass(frozen=True, slots=True)
class PriorityRecord:
    """A PriorityClass."""

    name: str
    value: int
    is_default: bool
    preempts: bool = True
    """Whether jobs of the class may preempt others."""


def pod_record(raw: Raw) -> PodRecord:
    """Read a pod of a job. Its labels may be invalid."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    tags = metadata.get("labels") or {}
    bound, found = bool(spec.get("nodeName")), read_state(spec, status)
    return PodRecord(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=sys.intern(metadata["namespace"]),
        job=sys.intern(tags.get(labels.JOB_UID, "")),
        owner=sys.intern(owner_of(metadata)),
        attempt=read_number(tags.get(labels.ATTEMPT)),
        index=read_number(tags.get(labels.NODE_INDEX)),
        node=sys.intern(spec.get("nodeName") or _pinned(spec)),
        bound=bound,
        phase=sys.intern(found.result),
        ready=found.ready,
        deleting="deletionTimestamp" in metadata,
        reason=found.reason,
        disruption=found.disruption,
        message=found.message[:TERMINATION_MESSAGE_BYTES],
        exit_code=found.exit_code,
        finished=found.finished,
        address=status.get("podIP", ""),
        resources=compact(pod_requests(spec, status)),
        gated=bool(spec.get("schedulingGates")),
        refused_since=found.refused_since,
        evicted_by_queue=found.evicted_by_queue,
        ends_by=seconds_of(metadata.get("deletionTimestamp")),
        rejected=bound and found.rejected,
        over_limit=found.disruption == "Evicted" and not found.disrupted,
        bound_at=found.bound_at,
        setting_up=found.setting_up,
        has_sidecar=found.has_sidecar,
        failed_init=found.failed_init,
    )


def owner_of(metadata: Raw) -> str:
    """Return the UID of the controller that owns an object; empty if there is none."""
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return ""


def _pinned(spec: Raw) -> str:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for match in term.get("matchFields") or ():
            if match.get("key") == "metadata.name" and match.get("values"):
                return str(match["values"][0])
    return ""


def read_number(text: str | None) -> int:
    """Return the number in a label, or -1."""
    return int(text) if text and text.isascii() and text.isdecimal() else -1


def is_followed(raw: Raw, namespace: str | None) -> bool:
    """Return True if the pod informer of an operator with this namespace holds the pod."""
    metadata = raw["metadata"]
    return labels.JOB_UID in (metadata.get("labels") or {}) and (
        namespace is None or metadata["namespace"] == namespace
    )


def foreign_pod(raw: Raw) -> ForeignPod | None:
    """Read a foreign pod. Return None if it is not bound, has ended, or takes nothing from jobs."""
    spec, status = raw["spec"], raw.get("status") or {}
    node = spec.get("nodeName")
    if not node or status.get("phase") in ("Succeeded", "Failed"):
        return None
    resources = compact(foreign_requests(spec, status))
    return ForeignPod(sys.intern(node), resources) if resources else None


def node_record(raw: Raw, table: HealthTable = DEFAULT_TABLE) -> NodeRecord:
    """Read a node, with what the table of node health finds on it."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    since = next((c.get("lastTransitionTime") for c in conditions if c["type"] == "Ready"), None)
    return NodeRecord(
        node_from_raw(raw, table), since or raw["metadata"].get("creationTimestamp", "")
    )


def fabric_record(raw: Raw) -> FabricRecord:
    """Read a Fabric. An invalid one has a problem instead of levels."""
    name = raw["metadata"]["name"]
    try:
        spec = FabricSpec.from_wire(raw.get("spec") or {})
        return FabricRecord(name, levels_of(spec), "", links_of(spec))
    except ValueError as error:
        return FabricRecord(name, (), str(error))


def priority_record(raw: Raw) -> PriorityRecord:
    """Read a PriorityClass."""
    return PriorityRecord(
        raw["metadata"]["name"],
        int(raw.get("value") or 0),
        bool(raw.get("globalDefault")),
        raw.get("preemptionPolicy") != "Never",
    )
