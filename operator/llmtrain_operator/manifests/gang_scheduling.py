"""Gang scheduling by kube-scheduler (PodGroup) and Kueue. Pure; each is enabled by its own flag.

The placement does not need them, because pods are pinned to nodes that are free for the whole gang.
Use PodGroups where other pods compete for the same nodes: kube-scheduler then binds all pods or
none. The pods of a PodGroup can share claims of devices. Use Kueue where it manages the quota: its
scheduling gate holds the pods until the job is admitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.validation.check import Job
from llmtrain_operator.kube.resources import POD_GROUPS, Resource
from llmtrain_operator.manifests.device_claims import shared_claims
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]

KUEUE_QUEUE_NAME = "kueue.x-k8s.io/queue-name"
"""Label of the job that names its LocalQueue. The other keys are those of Kueue's plain pod groups
(kueue.sigs.k8s.io, "Run plain pods")."""
_PRIORITY_CLASS = "kueue.x-k8s.io/priority-class"
"""Label of the job that names its WorkloadPriorityClass, which applies to Kueue only."""
KUEUE_LABELS = (KUEUE_QUEUE_NAME, _PRIORITY_CLASS)
"""Labels of a job that its pods get as well."""
KUEUE_GATE = "kueue.x-k8s.io/admission"
_GROUP_NAME = "kueue.x-k8s.io/pod-group-name"
_GROUP_COUNT = "kueue.x-k8s.io/pod-group-total-count"
_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
_ROLE = "kueue.x-k8s.io/role-hash"


@dataclass(frozen=True, slots=True)
class GangScheduling:
    """The enabled gang scheduling features."""

    pod_groups: bool = False
    """Create a `PodGroup` (scheduling.k8s.io/v1beta1); needs the feature gate GenericWorkload."""
    kueue: bool = False
    """Make the pods of a job that names a queue a Kueue pod group."""

    def resources(
        self, job: Job, identity: JobIdentity, attempt: int
    ) -> list[tuple[Resource, Object]]:
        """Return the objects to create before the first pod."""
        return [(POD_GROUPS, make_pod_group(job, identity, attempt))] if self.pod_groups else []

    def add_to_pod(
        self, body: Object, job: Job, raw: Mapping[str, Any], attempt: int, count: int
    ) -> Object:
        """Return the pod as a member of its group of `count` pods."""
        identity = JobIdentity.of(raw)
        if self.pod_groups:
            group = {"podGroupName": _group_name(job, identity, attempt)}
            body = {**body, "spec": {**body["spec"], "schedulingGroup": group}}
        tags = raw["metadata"].get("labels") or {}
        if self.kueue and tags.get(KUEUE_QUEUE_NAME):
            copied = {k: tags[k] for k in KUEUE_LABELS if k in tags}
            body = _with_kueue_gate(body, copied, identity.kueue_group(attempt), count)
        return body


def make_pod_group(job: Job, identity: JobIdentity, attempt: int) -> Object:
    """Return the PodGroup: the pods of an attempt are bound together and evicted together.

    One with claims belongs to an attempt, because Kubernetes releases their devices when it is
    deleted. Another one is that of all attempts.
    """
    spec: Object = {
        "schedulingPolicy": {"gang": {"minCount": job.nodes}},
        "disruptionMode": {"all": {}},
    }
    if job.spec.priority_class_name:
        spec["priorityClassName"] = job.spec.priority_class_name
    of_attempt: dict[str, str] = {}
    if claims := shared_claims(job, identity):
        spec["resourceClaims"] = claims
        of_attempt = {labels.ATTEMPT: str(attempt)}
    return {
        "apiVersion": POD_GROUPS.api_version,
        "kind": "PodGroup",
        "metadata": identity.metadata(_group_name(job, identity, attempt), **of_attempt),
        "spec": spec,
    }


def _group_name(job: Job, identity: JobIdentity, attempt: int) -> str:
    return identity.pod_group(attempt) if shared_claims(job, identity) else identity.name


def _with_kueue_gate(body: Object, copied: Mapping[str, str], group: str, count: int) -> Object:
    """Return the pod with the scheduling gate, labels and annotations of a Kueue pod group.

    Kueue's webhook would add the gate itself. Setting it here prevents that pods are scheduled
    while the webhook is unavailable. All pods get the same role hash, although each is pinned to
    another node: Kueue derives roles from the affinity and allows at most eight per group. Single
    pods of a gang are never replaced, so each attempt is a new group.
    """
    metadata, spec = body["metadata"], body["spec"]
    annotations = {
        **metadata.get("annotations", {}),
        _GROUP_COUNT: str(count),
        _RETRIABLE: "false",
        _ROLE: "worker",
    }
    labels = {**metadata["labels"], **copied, _GROUP_NAME: group}
    return {
        **body,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {**spec, "schedulingGates": [{"name": KUEUE_GATE}]},
    }
