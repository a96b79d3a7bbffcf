"""How the schedulers of others are told that pods belong together. Pure; each is switched on apart.

The placement does not need them: pods are pinned to nodes that are free for the whole gang. They
matter where others schedule on the same nodes (then kube-scheduler itself binds all or none), or
where quota is kept in queues of Kueue (then its gate holds the pods until the quota is there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.validation.check import Job
from llmtrain_operator.kube.resources import POD_GROUPS, Resource
from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]

KUEUE_QUEUE_NAME = "kueue.x-k8s.io/queue-name"
"""Label of the job: the LocalQueue whose quota it needs. The other keys are those of Kueue's plain
pod groups (kueue.sigs.k8s.io, "Run plain pods")."""
KUEUE_GATE = "kueue.x-k8s.io/admission"
_GROUP_NAME = "kueue.x-k8s.io/pod-group-name"
_GROUP_COUNT = "kueue.x-k8s.io/pod-group-total-count"
_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
_ROLE = "kueue.x-k8s.io/role-hash"


@dataclass(frozen=True, slots=True)
class GangScheduling:
    """Which of them are used."""

    pod_groups: bool = False
    """`PodGroup` of scheduling.k8s.io/v1beta1; needs the feature gate GenericWorkload."""
    kueue: bool = False
    """Pod groups of Kueue, for jobs that name a queue."""

    def resources(self, job: Job, identity: JobIdentity) -> list[tuple[Resource, Object]]:
        """Return the objects that must be there before the first pod."""
        return [(POD_GROUPS, make_pod_group(job, identity))] if self.pod_groups else []

    def add_to_pod(self, body: Object, raw: Mapping[str, Any], attempt: int, count: int) -> Object:
        """Return the pod as a member of its gang of `count` pods."""
        identity = JobIdentity.of(raw)
        if self.pod_groups:
            group = {"podGroupName": identity.name}
            body = {**body, "spec": {**body["spec"], "schedulingGroup": group}}
        queue = (raw["metadata"].get("labels") or {}).get(KUEUE_QUEUE_NAME)
        if self.kueue and queue:
            body = _with_kueue_gate(body, queue, f"{identity.name}-{attempt}", count)
        return body


def make_pod_group(job: Job, identity: JobIdentity) -> Object:
    """Return the PodGroup: all pods of an attempt are bound, or none; they end together."""
    spec: Object = {
        "schedulingPolicy": {"gang": {"minCount": job.nodes}},
        "disruptionMode": {"all": {}},
    }
    if job.spec.priority_class_name:
        spec["priorityClassName"] = job.spec.priority_class_name
    return {
        "apiVersion": POD_GROUPS.api_version,
        "kind": "PodGroup",
        "metadata": identity.metadata(identity.name),
        "spec": spec,
    }


def _with_kueue_gate(body: Object, queue: str, group: str, count: int) -> Object:
    """Return the pod behind the gate of a queue.

    Kueue's webhook would add the gate itself; with it already there, no pod slips through while the
    webhook is away. All pods have one role, though each is pinned to another node: Kueue tells
    roles apart by affinity and takes no more than eight in a group. A gang is never mended pod by
    pod, so the group ends with its pods and the next attempt is a group of its own.
    """
    metadata, spec = body["metadata"], body["spec"]
    annotations = {
        **metadata.get("annotations", {}),
        _GROUP_COUNT: str(count),
        _RETRIABLE: "false",
        _ROLE: "worker",
    }
    labels = {**metadata["labels"], KUEUE_QUEUE_NAME: queue, _GROUP_NAME: group}
    return {
        **body,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {**spec, "schedulingGates": [{"name": KUEUE_GATE}]},
    }
