"""The state of a pod, read from its status: what its trainer does, and why it does not start."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_operator.cache.job import Raw, parse_time
from llmtrain_operator.manifests.volumes import WORK_VOLUME

ENDED_PHASES = frozenset({"Succeeded", "Failed"})
INITIALIZING = "PodInitializing"
"""Why a container waits for the init containers of its pod."""
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
    }
)
"""Why a container waits whose image cannot be pulled."""
_QUOTA_REVOKED = "TerminationTarget"
"""Condition of a pod whose quota Kueue revokes."""
_DEADLINE = "DeadlineExceeded"
_DISRUPTIONS = frozenset({"DisruptionTarget", _QUOTA_REVOKED})


@dataclass(slots=True)
class PodState:
    """What the status of a pod says. The fields are those of `PodRecord`."""

    result: str
    reason: str
    message: str
    disruption: str
    exit_code: int | None
    finished: str
    failed_init: str = ""
    ready: bool = False
    evicted_by_queue: bool = False
    disrupted: bool = False
    setting_up: bool = False
    refused_since: str = ""
    bound_at: float = 0.0
    rejected: bool = False
    has_sidecar: bool = False


def read_state(spec: Raw, status: Raw) -> PodState:
    """Read the status of a pod."""
    phase, cause = status.get("phase", "Pending"), status.get("reason", "")
    reason, message, exit_code, finished = _end(status)
    failed_init = ""
    if exit_code is None and phase == "Failed" and not cause:
        failed_init, ended = _failed_init(spec, status)
        if failed_init:
            reason, message = ended.get("reason", ""), ended.get("message", "")
            exit_code, finished = ended["exitCode"], ended.get("finishedAt") or ""
    elif reason in ("", INITIALIZING):
        reason, message = _init_state(spec, status) or (reason, message)
    # activeDeadlineSeconds of a pod is no disruption: its next run would end the same way.
    disruption = "" if cause == _DEADLINE else cause
    found = PodState(phase, reason, message, disruption, exit_code, finished, failed_init)
    _add_conditions(found, status)
    found.result = _result(phase, exit_code, found.disruption or cause)
    found.rejected = phase == "Failed" and not found.disrupted and _never_ran(status)
    found.has_sidecar = exit_code is not None and phase not in ENDED_PHASES
    return found


def _add_conditions(found: PodState, status: Raw) -> None:
    for condition in status.get("conditions") or ():
        kind, holds = condition["type"], condition["status"]
        if kind == "Ready":
            found.ready = holds == "True"
        elif kind in _DISRUPTIONS and holds == "True":
            found.disruption = found.disruption or condition.get("reason") or kind
            found.disrupted = True
            found.evicted_by_queue = found.evicted_by_queue or kind == _QUOTA_REVOKED
        elif kind == "PodReadyToStartContainers":
            found.setting_up = holds == "False"
        elif kind == "PodScheduled" and holds == "True":
            found.bound_at = seconds_of(condition.get("lastTransitionTime"))
        elif kind == "PodScheduled" and holds == "False" and not found.reason:
            found.reason, found.message = condition.get("reason", ""), condition.get("message", "")
            if found.reason == Reason.UNSCHEDULABLE and not status.get("nominatedNodeName"):
                found.refused_since = condition.get("lastTransitionTime") or ""


def _never_ran(status: Raw) -> bool:
    """Return True if no container of a pod has started, and no limit of the pod's time ended it."""
    statuses = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    started = ("running", "terminated")
    return status.get("reason") != _DEADLINE and not any(
        key in (container.get("state") or {}) for container in statuses for key in started
    )


def _result(phase: str, exit_code: int | None, cause: str) -> str:
    """Return the phase of a pod by the exit code of its trainer, None if it has not ended.

    The kubelet waits for all containers, and fails the pod if any of them fails. `cause` is why
    the cluster ended the pod, which no exit code makes a success.
    """
    if exit_code is None or (phase == "Failed" and cause):
        return phase
    return "Failed" if exit_code else "Succeeded"


def _end(status: Raw) -> tuple[str, str, int | None, str]:
    """Return reason, message, exit code and end of the trainer.

    As long as it has not ended: the reason why it, or else another container, has not started.
    """
    reason, message = status.get("reason", ""), status.get("message", "")
    own = message if reason else ""
    containers = status.get("containerStatuses") or ()
    for container in sorted(
        containers, key=lambda found: found.get("name") != env.TRAINER_CONTAINER
    ):
        state = container.get("state") or {}
        if "terminated" in state and container.get("name") == env.TRAINER_CONTAINER:
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


def _init_state(spec: Raw, status: Raw) -> tuple[str, str] | None:
    """Return reason and message of the init container or sidecar that has not started or ended.

    It waits, such as for its image, or the trainer waits for its end or its startup probe.
    """
    sidecars = {
        container["name"]
        for container in spec.get("initContainers") or ()
        if container.get("restartPolicy") == "Always"
    }
    running = None
    for container in status.get("initContainerStatuses") or ():
        name, state = container.get("name", ""), container.get("state") or {}
        waiting = state.get("waiting") or {}
        if waiting.get("reason", "") not in ("", INITIALIZING):
            return waiting["reason"], waiting.get("message", "")
        if "running" in state and name not in sidecars:
            running = INITIALIZING, f"init container {name} is running"
        elif "running" in state and container.get("started") is False:
            running = INITIALIZING, f"sidecar {name} has not passed its startup probe"
    return running


def _failed_init(spec: Raw, status: Raw) -> tuple[str, Raw]:
    """Return name and end of the init container of the job that failed; an empty name if none did.

    Those that a webhook adds do not mount the volumes of the pod contract.
    """
    own = {
        container["name"]
        for container in spec.get("initContainers") or ()
        if any(mount.get("name") == WORK_VOLUME for mount in container.get("volumeMounts") or ())
    }
    for container in status.get("initContainerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if container.get("name") in own and ended.get("exitCode"):
            return container["name"], ended
    return "", {}


def seconds_of(timestamp: str | None) -> float:
    """Return an API timestamp in seconds since the epoch; 0 without one."""
    return parse_time(timestamp).timestamp() if timestamp else 0.0
