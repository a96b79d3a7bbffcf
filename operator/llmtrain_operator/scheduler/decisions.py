"""What the scheduler says about a job: where it may sit, why it waits, or that it has to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.job import JobView

TROUBLES = frozenset({Reason.QUOTA_EXCEEDED, Reason.FORBIDDEN, Reason.NAME_CONFLICT})
"""What keeps pods from being created and may pass: the job lets its nodes go and waits."""


def standing_back(view: JobView) -> bool:
    """Whether a job let its nodes go for such a trouble and does not queue for others yet."""
    placed = view.condition(ConditionType.PLACED)
    return placed is not None and placed["status"] == "False" and placed["reason"] in TROUBLES


@dataclass(frozen=True, slots=True)
class Offer:
    """Room for the whole gang. The scheduler keeps it free until the job's status shows it."""

    attempt: int
    placement: Mapping[str, Any]
    """`status.placement` as it is to be written."""
    summary: str
    nodes: tuple[str, ...]
    """Its nodes, spare ones included."""
    resources: Mapping[str, int]
    """What each node hands out."""
    backfilled: bool = False
    """Whether the job goes before one that is ahead of it and cannot start yet."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """No room now, and why."""

    reason: str
    message: str
    starts_at: float | None = None
    """When the job starts if all goes as foreseen, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """A job that runs has to stop: a whole gang of higher priority fits in its place."""

    attempt: int
    by: str
    """UID of the job that gets the room."""
    message: str


@dataclass(frozen=True, slots=True)
class Hint:
    """Where a job that runs would be better off; a gain of 1: nowhere."""

    attempt: int
    gain: float
    """Communication time of a step here over what it would be there."""
    summary: str


Verdict = Offer | Refusal | Eviction | Hint
