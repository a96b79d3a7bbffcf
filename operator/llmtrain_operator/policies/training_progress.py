"""Policy: write the reports of rank 0 to the status, validated and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, get_args

from pydantic import ValidationError

from llmtrain_core.api.conditions import ConditionType, clean_text
from llmtrain_core.api.defaults import CHAT_TEMPLATE_LENGTH
from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.api.status.job import Collective, Progress, TrainerPhase
from llmtrain_core.api.status.network import read_nccl_network
from llmtrain_core.api.status.network_tuning import read_network_tuning
from llmtrain_core.api.untrusted import is_count, is_finite
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.job_state.last_restart import record_restart_in_place
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.restart_budget import refill_restarts
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.plan_status import record_measurement

_INTEGER_FIELDS = ("step", "totalSteps", "lastCheckpointStep", "restartsInPlace")
_FLOAT_FIELDS = (
    "loss",
    "tokensPerSecond",
    "mfu",
    "heldOutLossBefore",
    "heldOutLossDuring",
    "heldOutLossAfter",
    "exactMatchBefore",
    "exactMatchDuring",
    "exactMatchAfter",
)
_PHASES = get_args(TrainerPhase)
_MAX_ETA_SECONDS = 10 * 365 * 86400.0
MAX_COLLECTIVES = 32
_TEXT_LENGTHS = {"networkFallback": 512, "chatTemplate": CHAT_TEMPLATE_LENGTH}


def record_progress(draft: StatusDraft) -> bool:
    """Poll rank 0's pod for its status, and apply its last response."""
    if not draft.is_true(ConditionType.RUNNING):
        return False
    head = next((pod for pod in current_pods(draft) if pod.index == 0), None)
    if head is not None and head.phase == "Running" and head.address and not head.deleting:
        draft.poll_pod = head
    report = draft.observed.report
    if report is not None and report.get("attempt", draft.attempt) == draft.attempt:
        apply_report(draft, report)
        _record_nccl_network(draft, report.get("nccl"))
        record_restart_in_place(draft, report)
        refill_restarts(draft)
        record_measurement(draft, report, _parse_float(report.get("stepSeconds")))
    return False


def _record_nccl_network(draft: StatusDraft, value: Any) -> None:
    """Write what NCCL says it uses beside the network that was decided, which it cannot change."""
    before = draft.view.stored_network
    if before is None:  # placed by an older release
        return
    network = {key: item for key, item in before.items() if key != "nccl"}
    found = read_nccl_network(value)
    if found is not None:
        network["nccl"] = found.to_wire()
    if network != before:
        draft.set_field("network", network)


def apply_report(draft: StatusDraft, report: Mapping[str, Any], *, final: bool = False) -> None:
    """Write the valid fields of a trainer report to the status."""
    found: dict[str, Any] = {}
    if report.get("phase") in _PHASES:
        found["phase"] = report["phase"]
    for key in _INTEGER_FIELDS:
        value = report.get(key)
        if is_count(value):
            found[key] = value
    for key in _FLOAT_FIELDS:
        value = _parse_float(report.get(key))
        if value is not None:
            found[key] = value
    for key, length in _TEXT_LENGTHS.items():
        if key in report:
            text = report[key]
            found[key] = clean_text(text, length) if isinstance(text, str) and text else None
    if "communication" in report:
        found["communication"] = _parse_communication(report["communication"])
    trials = read_network_tuning(report.get("networkTuning"))
    if trials is not None:  # it is kept until the next attempt goes on with it
        found["networkTuning"] = trials.to_wire()
    before = draft.view.progress
    collectives = _parse_collectives(report.get("collectives"))
    if collectives:
        found["collectives"] = collectives
    if not final:
        _set_eta_field(draft, found, before, _parse_float(report.get("stepSeconds")))
    progress = Progress.from_untrusted({**before, **found})
    if progress is None:
        return
    merged = progress.to_wire()
    if final:
        merged.pop("eta", None)
    if merged != before:
        draft.set_field("progress", merged)


def _parse_float(value: Any) -> float | None:
    """Return a finite float rounded to 6 digits (more only widen the columns), or None."""
    if not is_finite(value):
        return None
    try:
        return float(f"{value:.6g}")
    except OverflowError:
        return None


def _set_eta_field(
    draft: StatusDraft, found: dict[str, Any], before: Mapping[str, Any], seconds: float | None
) -> None:
    """Set the ETA if the step has changed; otherwise every poll would change the status."""
    step, total = found.get("step"), found.get("totalSteps")
    if step is None or total is None or not seconds or step == before.get("step"):
        return
    left = max(0, total - step) * seconds
    if 0 <= left < _MAX_ETA_SECONDS:
        found["eta"] = format_time(draft.observed.now + timedelta(seconds=left))


def _parse_communication(value: Any) -> dict[str, Any] | None:
    """Return the trials of communication settings, if they are valid; None clears the field."""
    found = CommunicationTuning.from_untrusted(value)
    return None if found is None else found.to_wire()


def _parse_collectives(entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        return []
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries[:MAX_COLLECTIVES]:
        try:
            item = Collective.from_wire(
                {key: entry[key] for key in ("group", "op", "count", "bytesPerStep", "meanSeconds")}
            )
        except (ValidationError, KeyError, TypeError):
            continue
        known[item.group, item.op] = item.to_wire()
    return list(known.values())
