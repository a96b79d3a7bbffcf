"""Figures of each job for metrics: its phase, why and since when it waits, and its plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.layout import GROUP_LABELS
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.metrics.reasons import reason_label

_WAITING_PHASES = frozenset({"Pending", "Queued"})


@dataclass(frozen=True, slots=True)
class JobFigures:
    """Figures of one job."""

    namespace: str
    name: str
    phase: str
    waiting_reason: str | None = None
    """Why it has no placement; None if it has one or does not want one."""
    waiting_since: float | None = None
    """In seconds since the epoch."""
    planned_step: float | None = None
    """Seconds; None for a finished job and for one without a plan."""
    planned_collectives: Mapping[str, float] = field(default_factory=dict)
    """Seconds per step, overlapping with computation or not, by label of the group."""


def job_figures(record: JobRecord) -> JobFigures:
    """Return the figures of a job."""
    view = record.view
    reason = since = None
    if view.phase in _WAITING_PHASES and view.placement is None:
        placed = view.condition(ConditionType.PLACED)
        reason = reason_label(placed["reason"] if placed else Reason.QUEUED)
        since = _waits_since(view)
    step = {} if view.is_finished else view.plan.get("step") or {}
    collectives = step.get("collectives") or {}
    return JobFigures(
        record.namespace,
        record.name,
        view.phase,
        reason,
        since,
        step.get("seconds"),
        {label: collectives[label] for label in GROUP_LABELS if label in collectives},
    )


def _waits_since(view: JobView) -> float:
    """Return when the job began to wait: its creation, the end of its placement, or its resume."""
    conditions = map(view.condition, (ConditionType.PLACED, ConditionType.SUSPENDED))
    times = [found["lastTransitionTime"] for found in conditions if found]
    return max(parse_time(text).timestamp() for text in (view.creation_time, *times))


def oldest_wait(jobs: list[JobFigures], now: float) -> float:
    """Return the seconds that the job with the longest wait has waited; 0 if none waits."""
    waits = [now - job.waiting_since for job in jobs if job.waiting_since is not None]
    return max(0.0, *waits) if waits else 0.0
