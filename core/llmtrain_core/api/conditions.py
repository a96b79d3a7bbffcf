"""Conditions of a job: types, reasons, and updates by the rules of metav1.Condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from llmtrain_core.api.defaults import MESSAGE_LENGTH
from llmtrain_core.api.untrusted import printable


class ConditionType(StrEnum):
    """Type of a condition. All but the last four have positive polarity."""

    ACCEPTED = "Accepted"
    RESUMABLE = "Resumable"
    PLACED = "Placed"
    PODS_READY = "PodsReady"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    NETWORK_DEGRADED = "NetworkDegraded"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Machine-readable reason of a condition."""

    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_PRESET = "UnknownPreset"
    UNREADABLE = "Unreadable"
    RESTORED = "Restored"
    TOO_LARGE = "TooLarge"
    NOT_YET_SUPPORTED = "NotYetSupported"
    NAME_TOO_LONG = "NameTooLong"
    INVALID_NAME = "InvalidName"
    WORLD_SIZE_MISMATCH = "WorldSizeMismatch"
    WILL_NOT_FIT = "WillNotFit"
    FORBIDDEN = "Forbidden"
    NAME_CONFLICT = "NameConflict"
    QUOTA_EXCEEDED = "QuotaExceeded"

    NO_CHECKPOINT = "NoCheckpoint"
    CHECKPOINT_SET = "CheckpointSet"

    PLACED = "Placed"
    QUEUED = "Queued"
    INSUFFICIENT_GPUS = "InsufficientGpus"
    INSUFFICIENT_NODES = "InsufficientNodes"
    NO_MATCHING_NODES = "NoMatchingNodes"
    NETWORK_MISMATCH = "NetworkMismatch"
    DOMAIN_TOO_SMALL = "DomainTooSmall"
    WAITING_BEHIND = "WaitingBehindJob"
    FABRIC_NOT_FOUND = "FabricNotFound"
    INVALID_FABRIC = "InvalidFabric"
    UNKNOWN_LEVEL = "UnknownLevel"
    PRIORITY_CLASS_NOT_FOUND = "PriorityClassNotFound"
    NOT_SERVED = "NotServed"
    DEVICE_CLASS_NOT_FOUND = "DeviceClassNotFound"
    DEVICE_CLASS_NOT_SUPPORTED = "DeviceClassNotSupported"
    INSUFFICIENT_DEVICES = "InsufficientDevices"
    NOT_PLACED = "NotPlaced"
    TOO_MANY_ACTIVE_JOBS = "TooManyActiveJobs"
    NODES_QUARANTINED = "NodesQuarantined"
    PREEMPTING = "Preempting"
    PREEMPTED = "Preempted"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    EVICTED_BY_QUEUE = "EvictedByQueue"
    MOVED = "Moved"
    NODE_DRAINING = "NodeDraining"
    NOT_PROTECTED = "NotProtected"
    RESERVATION_EXPIRED = "ReservationExpired"
    PLACEMENT_ENDED = "PlacementEnded"

    PODS_STARTING = "PodsStarting"
    PODS_TERMINATING = "PodsTerminating"
    ALL_PODS_READY = "AllPodsReady"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    STARTUP_TIMEOUT = "StartupTimeout"
    UNSCHEDULABLE = "Unschedulable"
    CONTAINER_CONFIG_ERROR = "CreateContainerConfigError"
    OBJECT_NOT_FOUND = "ObjectNotFound"
    TRAINING = "Training"

    TOPOLOGY_CHANGED = "TopologyChanged"
    TOPOLOGY_AS_PLACED = "TopologyAsPlaced"
    CONGESTED_UPLINK = "CongestedUplink"
    SLOW_NODE = "SlowNode"
    TRANSFERS_AS_USUAL = "TransfersAsUsual"

    GANG_RESTART = "GangRestart"
    RESTART_IN_PLACE = "RestartInPlace"
    RESTART_BACKOFF = "RestartBackoff"
    NODE_REPLACED = "NodeReplaced"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"

    COMPLETED = "Completed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    OUT_OF_MEMORY = "OutOfMemory"
    EXIT_CODE = "ExitCode"
    NODE_LOST = "NodeLost"
    POD_DELETED = "PodDeleted"
    POD_FAILED = "PodFailed"
    PEER_LOST = "PeerLost"
    TOO_MANY_RESTARTS = "TooManyRestarts"


def clean_text(text: str, limit: int = MESSAGE_LENGTH) -> str:
    """Return untrusted text without control characters and with a bounded length."""
    squeezed = " ".join(printable(text).split())
    return squeezed if len(squeezed) <= limit else squeezed[: limit - 1] + "…"


def set_condition(
    conditions: Iterable[Mapping[str, Any]],
    kind: ConditionType,
    status: bool,
    reason: str,
    message: str,
    *,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """Return the conditions with one of them set, in the order of `ConditionType`.

    `now` is RFC 3339 in UTC. `lastTransitionTime` changes only if the status changes (metav1).
    """
    by_type = {str(condition["type"]): dict(condition) for condition in conditions}
    wire = "True" if status else "False"
    before = by_type.get(kind.value)
    flipped = before is None or before["status"] != wire
    by_type[kind.value] = {
        "type": kind.value,
        "status": wire,
        "reason": reason,
        "message": clean_text(message),
        "observedGeneration": generation,
        "lastTransitionTime": now if before is None or flipped else before["lastTransitionTime"],
    }
    order = {kind.value: position for position, kind in enumerate(ConditionType)}
    return sorted(by_type.values(), key=lambda c: order.get(c["type"], len(order)))


def get_condition(
    conditions: Iterable[Mapping[str, Any]], kind: ConditionType
) -> Mapping[str, Any] | None:
    """Return one condition, or None."""
    for condition in conditions:  # read for each job in each scheduling cycle
        if condition["type"] == kind:
            return condition
    return None


def is_true(conditions: Iterable[Mapping[str, Any]], kind: ConditionType) -> bool:
    """Return True if the condition exists and its status is True."""
    condition = get_condition(conditions, kind)
    return condition is not None and condition["status"] == "True"
