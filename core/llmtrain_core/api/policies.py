"""Sections `failurePolicy` and `runPolicy` of a job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api import defaults
from llmtrain_core.api.base import (
    ApiModel,
    Duration,
    Name,
    Rule,
    duration_seconds,
    list_map,
    list_set,
)


class FailureRule(ApiModel):
    """What to do about one kind of failure; the first rule that matches decides."""

    name: Name
    """Name of the rule, unique in the job."""
    action: Literal["RestartInPlace", "ReplaceNode", "RestartGang", "FailJob"]
    """What happens."""
    on_exit_codes: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=255)]],
            Field(max_length=255),
            list_set(),
        ]
        | None
    ) = None
    """Exit codes that match."""
    on_reasons: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=128)]],
            Field(max_length=32),
            list_set(),
        ]
        | None
    ) = None
    """Failure reasons that match."""


class FailurePolicy(ApiModel):
    """What happens when something breaks."""

    max_restarts: Annotated[int, Field(ge=0, le=10000)] = defaults.MAX_RESTARTS
    """Restarts after which the job fails."""
    max_restarts_in_place: Annotated[int, Field(ge=0, le=10000)] = defaults.MAX_RESTARTS_IN_PLACE
    """Before that: restarts of all ranks inside their running pods, in a row without a newer
    checkpoint. Zero turns them off."""
    rules: Annotated[list[FailureRule], Field(max_length=32), list_map("name")] | None = None
    """Rules; the first match decides."""
    hang_timeout: Duration | None = None
    """Without a step, or a tensor of a save or export, for this long the job counts as hung."""
    startup_timeout: Duration = defaults.STARTUP_TIMEOUT
    """A gang whose pods are not all running after this long is released and placed anew."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.hangTimeout) || !self.hangTimeout.matches('^[0hms]+$')",
            "must be longer than zero",
            ".hangTimeout",
            lambda self: self.hang_timeout is None or duration_seconds(self.hang_timeout) > 0,
        ),
        Rule(
            "!self.startupTimeout.matches('^[0hms]+$')",
            "must be longer than zero",
            ".startupTimeout",
            lambda self: duration_seconds(self.startup_timeout) > 0,
        ),
    )


class RunPolicy(ApiModel):
    """Life of the job and of its leftovers (names and meaning of Kubeflow)."""

    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """The job is deleted this long after it finished."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """The job fails if it has not finished this long after it first started."""
    clean_pod_policy: Literal["All", "Running", "None"] = "Running"
    """Which pods are deleted when the job has finished."""
