"""What pods wait for that a user has to create or renew: Secrets, ConfigMaps, keys, credentials.

The operator has no right to read Secrets, so that one is missing is known from the kubelet only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_operator.cache.pod_state import IMAGE_REASONS
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.status_draft import StatusDraft

_NOT_FOUND = re.compile(
    r'(?i:secret|configmap)s? "[^"]{1,253}" (not found|has no key)'
    r"|couldn't find key \S{1,253} in (?i:secret|configmap)"
    r"|references non-existent (secret|config) key"
)
"""Messages of kubelets: of a variable (`kubelet_pods.go`) and of a volume (`volume/secret`,
`volume/configmap`)."""
_NOT_AUTHORIZED = re.compile(
    r"(?i)\b(unauthorized|authentication required|authorization failed|no basic auth credentials"
    r"|access denied|denied|forbidden|401|403)\b"
)
"""Messages of registries that refuse the credentials of a pull."""


def missing_object(pod: PodRecord, events: Mapping[str, str]) -> str:
    """Return what a pod waits for that the user has to create; empty if it is nothing.

    `events` is what the Events of pods say, by UID of the pod.
    """
    if pod.started or pod.deleting or not pod.bound:
        return ""
    if pod.reason == Reason.CONTAINER_CONFIG_ERROR:
        return pod.message or pod.reason
    found = events.get(pod.uid, "")
    return found if _NOT_FOUND.search(found) else ""


def named_by_events(draft: StatusDraft, pods: Sequence[PodRecord]) -> list[PodRecord]:
    """Return the pods of which only the Events say what is missing."""
    events = draft.observed.pod_events
    return [pod for pod in pods if not missing_object(pod, {}) and missing_object(pod, events)]


def is_refused_by_registry(pod: PodRecord) -> bool:
    """Return True if the registry of an image refuses the credentials of a pod."""
    waits = pod.reason in IMAGE_REASONS and not pod.started and not pod.deleting
    return waits and _NOT_AUTHORIZED.search(pod.message) is not None


def pods_without_object(pods: Sequence[PodRecord], events: Mapping[str, str]) -> list[str]:
    """Return the UIDs of the pods that wait for an object that is missing or not valid any more."""
    return [pod.uid for pod in pods if missing_object(pod, events) or is_refused_by_registry(pod)]


def missing_reason(
    draft: StatusDraft, pods: Sequence[PodRecord]
) -> tuple[str, str, PodRecord] | None:
    """Return reason, message and pod of what the gang waits for; None if it is nothing.

    Of several pods, the one that has waited longest is named.
    """
    seconds, events = draft.observed.missing_seconds, draft.observed.pod_events
    for pod in sorted(pods, key=lambda pod: (-seconds.get(pod.uid, 0.0), pod.index)):
        where = f"pod {pod.name} on node {pod.node}"
        if text := missing_object(pod, events):
            known = _NOT_FOUND.search(text) is not None
            reason = Reason.OBJECT_NOT_FOUND if known else Reason.CONTAINER_CONFIG_ERROR
            remedy = "; create it, or correct the job" if known else ""
            return reason, clean_text(f"spec.workers: {where}: {text}", 600) + remedy, pod
        secrets = draft.job.spec.workers.image_pull_secrets
        if secrets and is_refused_by_registry(pod):
            names = clean_text(", ".join(secret.name for secret in secrets), 200)
            message = (
                f"spec.workers.imagePullSecrets: a registry refuses the credentials of {names}, or"
                f" they do not exist; renew them; {where}: {pod.reason}: {pod.message}"
            )
            return Reason.IMAGE_PULL_FAILED, clean_text(message, 700), pod
    return None
