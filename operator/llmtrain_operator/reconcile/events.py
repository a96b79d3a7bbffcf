"""Events of a job: for each condition whose status or reason changed, and restarts in place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.base import API_VERSION
from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.last_restart import in_place_message
from llmtrain_operator.manifests.names import JobIdentity

_WARNING_CONDITIONS = frozenset(
    {ConditionType.FAILED, ConditionType.RESTARTING, ConditionType.NETWORK_DEGRADED}
)
_NO_EVENT_WHEN_FALSE = frozenset(
    {ConditionType.RUNNING, ConditionType.RESTARTING, ConditionType.FAILED, ConditionType.SUCCEEDED}
)
_START = (
    ConditionType.ACCEPTED,
    ConditionType.PLACED,
    ConditionType.PODS_READY,
    ConditionType.RUNNING,
)
"""Conditions that become true one after the other."""


def changed_conditions(before: JobView, after: JobView) -> Iterator[Mapping[str, Any]]:
    """Yield the conditions whose status or reason changed."""
    known = {c["type"]: (c["status"], c["reason"]) for c in before.conditions}
    for condition in after.conditions:
        was, now = known.get(condition["type"]), (condition["status"], condition["reason"])
        silent = condition["status"] == "False" and condition["type"] in _NO_EVENT_WHEN_FALSE
        if was != now and not silent:
            yield condition


def restart_in_place(before: JobView, after: JobView) -> Mapping[str, Any] | None:
    """Return a newly recorded restart in place like a condition, or None."""
    found = after.last_restart
    if found == before.last_restart or found.get("action") != Reason.RESTART_IN_PLACE:
        return None
    return {
        "type": ConditionType.RESTARTING.value,
        "status": "True",
        "reason": Reason.RESTART_IN_PLACE.value,
        "message": in_place_message(found),
        "lastTransitionTime": found["time"],
    }


def status_events(
    identity: JobIdentity, before: JobView, after: JobView, now: str
) -> list[dict[str, Any]]:
    """Return the Events of a written status."""
    found = conditions_to_report(before, after)
    in_place = restart_in_place(before, after)
    if in_place is not None:
        found.append(in_place)
    return [make_event(identity, condition, after.attempt, now) for condition in found]


def conditions_to_report(before: JobView, after: JobView) -> list[Mapping[str, Any]]:
    """Return the changed conditions that get an Event.

    Of the steps to a running gang, only the last one that one write reaches gets an Event.
    """
    changed = list(changed_conditions(before, after))
    normal = [c for c in changed if c["type"] in _START and not _is_warning(c)]
    reached = [c for c in normal if c["status"] == "True"] or normal
    latest = max(reached, key=lambda c: _START.index(c["type"]), default=None)
    return [c for c in changed if c not in normal or c is latest]


def _is_warning(condition: Mapping[str, Any]) -> bool:
    if condition["type"] in _WARNING_CONDITIONS:
        return bool(condition["status"] == "True")
    return condition["status"] == "False" and condition["reason"] not in _NORMAL_REASONS


def make_event(
    identity: JobIdentity, condition: Mapping[str, Any], attempt: int, now: str
) -> dict[str, Any]:
    """Return the Event for a changed condition; its name is a hash, so it is created only once."""
    key = "/".join(
        (
            condition["type"],
            condition["status"],
            condition["reason"],
            str(attempt),
            condition["lastTransitionTime"],
        )
    )
    warning = _is_warning(condition)
    involved = {
        "apiVersion": API_VERSION,
        "kind": "LLMTrainingJob",
        "namespace": identity.namespace,
        "name": identity.name,
        "uid": identity.uid,
    }
    reason, message = condition["reason"], condition["message"]
    return _event(involved, key, reason, message, now, warning=warning)


def finding_event(
    identity: JobIdentity, reason: Reason, text: str, attempt: int, now: str
) -> dict[str, Any]:
    """Return the Event for a text that is in no condition of the job."""
    finding = {
        "type": text,  # it makes the name of the Event
        "status": "False",
        "reason": reason.value,
        "message": text,
        "lastTransitionTime": now,
    }
    return make_event(identity, finding, attempt, now)


def pod_event(pod: PodRecord, reason: str, message: str, now: str) -> dict[str, Any]:
    """Return an Event about a pod whose job is gone. It is created once for each reason."""
    involved = {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
    }
    return _event(involved, reason, reason, message, now, warning=True)


def _event(
    involved: Mapping[str, str], key: str, reason: str, message: str, now: str, *, warning: bool
) -> dict[str, Any]:
    digest = hashlib.sha256(f"{involved['uid']}/{key}".encode()).hexdigest()[:16]
    name, namespace = involved["name"], involved["namespace"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name[:200]}.{digest}", "namespace": namespace},
        "involvedObject": dict(involved),
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": clean_text(message),
        "source": {"component": "llmtrain-operator"},
        "reportingComponent": labels.CONTROLLER_NAME,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


_NORMAL_REASONS = frozenset(
    {
        "Queued",
        "NotPlaced",
        "PodsStarting",
        "Suspended",
        "Resumed",
        "Completed",
        "AllPodsReady",
    }
)
