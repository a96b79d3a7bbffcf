"""Reasons as values of a metric label: a fixed set, because pods and users can write any reason."""

from __future__ import annotations

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.failure_info import TRAINER_REASONS

OTHER = "Other"

POD_REASONS = frozenset(
    {
        "DeletionByPodGC",
        "DeletionByTaintManager",
        "Evicted",
        "EvictionByEvictionAPI",
        "NodeAffinity",
        "NodeShutdown",
        "PreemptionByScheduler",
        "TerminationByKubelet",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)
"""Reasons of Kubernetes for the end of a pod: of pod statuses and of DisruptionTarget."""

FAILURE_REASONS = (
    TRAINER_REASONS
    | POD_REASONS
    | frozenset(
        {
            Reason.CONTAINER_CONFIG_ERROR.value,
            Reason.DEADLINE_EXCEEDED.value,
            Reason.EXIT_CODE.value,
            Reason.FORBIDDEN.value,
            Reason.IMAGE_PULL_FAILED.value,
            Reason.NAME_CONFLICT.value,
            Reason.NODE_LOST.value,
            Reason.OBJECT_NOT_FOUND.value,
            Reason.OUT_OF_MEMORY.value,
            Reason.PEER_LOST.value,
            Reason.POD_DELETED.value,
            Reason.POD_FAILED.value,
            Reason.QUOTA_EXCEEDED.value,
            Reason.STARTUP_TIMEOUT.value,
            Reason.TOO_MANY_RESTARTS.value,
            Reason.UNSCHEDULABLE.value,
            OTHER,
        }
    )
)
"""Reasons that a failure of an attempt or of a job is counted under."""

_KNOWN = FAILURE_REASONS | {reason.value for reason in Reason}


def reason_label(reason: str) -> str:
    """Return a reason as the value of a label: the reason if it is known, else `Other`."""
    return str(reason) if reason in _KNOWN else OTHER
