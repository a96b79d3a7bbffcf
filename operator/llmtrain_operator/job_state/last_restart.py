"""The last restart of a gang in its status: by the operator, or by its launchers in place.

The launchers decide on restarts in place; their limit is `maxRestartsInPlace`. The pod of rank 0
reports how many there were in its attempt, and the cause of the last one. Pods may report anything,
so these texts and numbers are bounded, and nothing but the status and an Event follows from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.failure_info import RESERVED_REASONS
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.metrics.reasons import POD_REASONS

RECORD_SECONDS = 30.0
"""Minimum interval between two recorded restarts in place of an attempt, because each one makes an
Event. The next record has the number of those in between."""
_MESSAGE_LENGTH = 512
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_RESERVED = RESERVED_REASONS | POD_REASONS


def record_gang_restart(draft: StatusDraft, *, replaces_nodes: bool) -> None:
    """Count a restart of the gang, and write it to `lastRestart` with the last failure as cause."""
    cause = draft.view.failures[-1]
    found = {key: cause[key] for key in ("time", "attempt", "reason", "message")}
    if "node" in cause:
        found["node"] = cause["node"]
    action = "ReplaceNode" if replaces_nodes else "RestartGang"
    draft.set_field("restarts", draft.view.restarts + 1)
    draft.set_field("lastRestart", {**found, "action": action})
    progress = draft.view.progress
    if progress.get("restartsInPlace"):  # of the attempt that has ended
        draft.set_field("progress", {**progress, "restartsInPlace": 0})


def record_restart_in_place(draft: StatusDraft, report: Mapping[str, Any]) -> None:
    """Write a reported restart in place to `lastRestart`, unless it is recorded already."""
    count = _number(report.get("restartsInPlace"))
    cause = report.get("lastRestart")
    if not count or not isinstance(cause, Mapping):
        return
    last = draft.view.last_restart
    if last.get("attempt") == draft.attempt and last.get("action") == Reason.RESTART_IN_PLACE:
        passed = (draft.observed.now - parse_time(last["time"])).total_seconds()
        if passed < RECORD_SECONDS or count <= int(last.get("restartsInPlace") or 0):
            return
    found: dict[str, Any] = {
        "time": draft.now,
        "attempt": draft.attempt,
        "action": Reason.RESTART_IN_PLACE.value,
        "reason": _reason(cause.get("reason")),
        "message": clean_text(_text(cause.get("message")), _MESSAGE_LENGTH),
        "restartsInPlace": count,
    }
    rank = _number(cause.get("rank"))
    if rank is not None and rank < draft.job.layout.world_size:
        found["rank"] = rank
    draft.set_field("lastRestart", found)


def in_place_message(restart: Mapping[str, Any]) -> str:
    """Return what the Event of a restart in place says."""
    count, rank = restart["restartsInPlace"], restart.get("rank")
    where = "" if rank is None else f" of rank {rank}"
    times = "once" if count == 1 else f"{count} times"
    return (
        f"the launchers restarted all ranks in their pods, {times} in attempt {restart['attempt']};"
        f" the last cause is {restart['reason']}{where}: {restart['message']}"
    )


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _reason(value: Any) -> str:
    """Return a reason that a pod gives. It cannot give one of the operator or of Kubernetes."""
    text = _text(value)
    valid = _REASON.fullmatch(text) and text not in _RESERVED
    return text if valid else Reason.EXIT_CODE.value
