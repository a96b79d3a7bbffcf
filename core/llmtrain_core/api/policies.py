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
    """Action for one kind of failure."""

    name: Name
    """Name of the rule. Must be unique in the job."""
    action: Literal["RestartInPlace", "ReplaceNode", "RestartGang", "FailJob"]
    """Action on a matching failure."""
    on_exit_codes: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=255)]],
            Field(max_length=255),
            list_set(),
        ]
        | None
    ) = None
    """Exit codes to match."""
    on_reasons: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=128)]],
            Field(max_length=32),
            list_set(),
        ]
        | None
    ) = None
    """Failure reasons to match."""


class FailurePolicy(ApiModel):
    """Failure policy."""

    max_restarts: Annotated[int, Field(ge=0, le=10000)] = defaults.MAX_RESTARTS
    """Maximum number of gang restarts after failures of the job itself without a new checkpoint
    before the job fails. Restarts after disruptions, such as a drain or a lost node, do not count.
    0: the first failure of the job itself fails it."""
    max_restarts_in_place: Annotated[int, Field(ge=0, le=10000)] = defaults.MAX_RESTARTS_IN_PLACE
    """Maximum number of consecutive in-place restarts without a new checkpoint before the gang is
    restarted. An in-place restart restarts all ranks inside their running pods. 0 disables it."""
    rules: Annotated[list[FailureRule], Field(max_length=32), list_map("name")] | None = None
    """Failure rules. The first matching rule applies."""
    hang_timeout: Duration | None = None
    """Time without progress (a step, or a tensor of a save or export) after which the job is
    hung."""
    startup_timeout: Duration = defaults.STARTUP_TIMEOUT
    """Time for all pods of the gang to start. After it, the gang is released and placed again."""

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
    """Deadline, TTL and pod cleanup policy, as in Kubeflow."""

    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Time in seconds after which a finished job is deleted. Never when absent."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Time in seconds after the first start after which an unfinished job fails. No limit when
    absent."""
    clean_pod_policy: Literal["All", "Running", "None"] = "Running"
    """Pods to delete when the job has finished: All, Running or None."""
