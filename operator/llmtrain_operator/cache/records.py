"""What the operator remembers of pods, nodes and jobs: small records instead of whole objects."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.topology.inventory import Node, extended_requests, node_from_raw
from llmtrain_core.topology.levels import Levels, levels_of
from llmtrain_core.topology.links import Links, links_of
from llmtrain_operator.cache.job import JobView, Raw

_QUEUE_ENDED = "TerminationTarget"
"""Condition of a pod whose quota Kueue takes back."""
_ENDED_FROM_OUTSIDE = frozenset({"DisruptionTarget", _QUEUE_ENDED})


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod of a job."""

    uid: str
    name: str
    namespace: str
    job: str
    """UID of the job that its label names."""
    owner: str
    """UID of the controller that owns it: only this makes it ours."""
    attempt: int
    index: int
    node: str
    """Where it is bound, else where it is pinned."""
    bound: bool
    """Whether kube-scheduler has given it that node."""
    phase: str
    ready: bool
    deleting: bool
    reason: str
    """Reason of the pod's own end (Evicted, ...), else of what holds its container up."""
    disruption: str
    """Why the cluster ended it (Evicted, NodeShutdown, ...); empty where it did not."""
    message: str
    exit_code: int | None
    finished: str
    """When its container ended."""
    address: str
    resources: tuple[tuple[str, int], ...]
    gated: bool = False
    """Whether somebody has yet to let it be scheduled."""
    evicted_by_queue: bool = False

    @property
    def ended(self) -> bool:
        """Whether it will never run again."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def started(self) -> bool:
        """Whether its container has started."""
        return self.phase not in ("Pending", "Unknown", "")

    def belongs_to(self, job: JobRecord) -> bool:
        """Whether the job owns it: an owner is always of the same namespace, whatever it says."""
        return self.owner == job.uid and self.namespace == job.namespace


@dataclass(frozen=True, slots=True)
class ForeignPod:
    """A pod of somebody else that holds extended resources."""

    uid: str
    node: str
    resources: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, and since when it is (not) ready."""

    node: Node
    since: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job: the whole object, and the view through which it is read."""

    uid: str
    namespace: str
    name: str
    version: int
    raw: Raw
    view: JobView = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "view", JobView.of(self.raw))


@dataclass(frozen=True, slots=True)
class FabricRecord:
    """A Fabric: its levels, or why it has none."""

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
    """Whether jobs of the class may stop others."""


def read_json(text: str | bytes) -> Any:
    """Parse JSON written by a user's program. Return None if it is invalid or too deeply nested."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def pod_record(raw: Raw) -> PodRecord:
    """Read a pod of ours (whatever its labels say)."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    tags = metadata.get("labels") or {}
    reason, message, exit_code, finished = _end(status)
    ready = evicted = False
    # A deadline of the pod's own is no disruption: its next run would end the same way.
    disruption = status.get("reason", "")
    disruption = "" if disruption == "DeadlineExceeded" else disruption
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready":
            ready = condition["status"] == "True"
        elif condition["type"] in _ENDED_FROM_OUTSIDE and condition["status"] == "True":
            disruption = disruption or condition.get("reason") or condition["type"]
            evicted = evicted or condition["type"] == _QUEUE_ENDED
        elif condition["type"] == "PodScheduled" and condition["status"] == "False" and not reason:
            reason, message = condition.get("reason", ""), condition.get("message", "")
    return PodRecord(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=sys.intern(metadata["namespace"]),
        job=sys.intern(tags.get(labels.JOB_UID, "")),
        owner=sys.intern(_owner(metadata)),
        attempt=_number(tags.get(labels.ATTEMPT)),
        index=_number(tags.get(labels.NODE_INDEX)),
        node=sys.intern(spec.get("nodeName") or _pinned(spec)),
        bound=bool(spec.get("nodeName")),
        phase=sys.intern(status.get("phase", "Pending")),
        ready=ready,
        deleting="deletionTimestamp" in metadata,
        reason=reason,
        disruption=disruption,
        message=message[:TERMINATION_MESSAGE_BYTES],
        exit_code=exit_code,
        finished=finished,
        address=status.get("podIP", ""),
        resources=tuple(extended_requests(spec).items()),
        gated=bool(spec.get("schedulingGates")),
        evicted_by_queue=evicted,
    )


def _end(status: Raw) -> tuple[str, str, int | None, str]:
    """Why the first container that is not well is not: reason, message, exit code, end."""
    reason, message = status.get("reason", ""), status.get("message", "")
    own = message if reason else ""
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        if "terminated" in state:
            ended = state["terminated"]
            return (
                reason or ended.get("reason", ""),
                own or ended.get("message", "") or message,
                ended.get("exitCode"),
                ended.get("finishedAt") or "",
            )
        if "waiting" in state and not reason:
            reason = state["waiting"].get("reason", "")
            message = state["waiting"].get("message", "")
    return reason, message, None, ""


def _owner(metadata: Raw) -> str:
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


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else -1


def is_followed(raw: Raw, namespace: str | None) -> bool:
    """Whether the copy of our own pods holds it, for an operator of one namespace or of all."""
    metadata = raw["metadata"]
    return labels.JOB_UID in (metadata.get("labels") or {}) and (
        namespace is None or metadata["namespace"] == namespace
    )


def foreign_pod(raw: Raw) -> ForeignPod | None:
    """Read a pod of somebody else; None where it holds nothing that we place."""
    resources = extended_requests(raw["spec"])
    node = raw["spec"].get("nodeName")
    if not resources or not node:
        return None
    return ForeignPod(raw["metadata"]["uid"], node, tuple(resources.items()))


def node_record(raw: Raw) -> NodeRecord:
    """Read a node."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    since = next((c.get("lastTransitionTime") for c in conditions if c["type"] == "Ready"), None)
    return NodeRecord(node_from_raw(raw), since or raw["metadata"].get("creationTimestamp", ""))


def job_record(raw: Raw) -> JobRecord:
    """Read a job; the bookkeeping of field managers is dropped."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    return JobRecord(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=int(metadata["resourceVersion"]),
        raw={**raw, "metadata": metadata},
    )


def fabric_record(raw: Raw) -> FabricRecord:
    """Read a Fabric; one that is wrong is remembered with what is wrong."""
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
