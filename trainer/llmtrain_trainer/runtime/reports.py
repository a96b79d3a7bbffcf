"""What a rank tells its launcher, as values on a pipe.

A pipe per rank and one registry in the launcher, instead of prometheus-client's multiprocess mode:
that one leaves a memory-mapped file per process behind, has no exemplary meaning for gauges of dead
processes, and cannot carry the status and the cause of a failure. One small message a step costs
some tens of microseconds; the launcher always drains, so a rank never blocks on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmtrain_core.api.failure import FailureInfo
from llmtrain_core.api.status import TrainerPhase


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """The rank entered a phase."""

    phase: TrainerPhase
    step: int


UNKNOWN_GROUP = "other"
"""Label of a process group that is no dimension of the grid."""


@dataclass(frozen=True, slots=True)
class CollectiveSample:
    """All calls of one operation on one group in a sampled step of one rank."""

    group: str
    op: str
    count: int
    nbytes: int
    """Payload of all calls: the whole tensor, whatever the algorithm moves."""
    group_size: int
    seconds: tuple[float, ...]
    """One duration per call; empty for point-to-point, whose end is not waited for."""
    waits: tuple[float, ...] = ()
    """Seconds of each duration in which the last rank had not come yet, where that is known."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    seconds: float
    phases: Mapping[str, float]
    """Seconds by part of the step."""
    tokens: int
    """Over all ranks."""
    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float
    """Before clipping."""
    collectives: tuple[CollectiveSample, ...] = field(default=())
    straggler_score: float | None = None
    """Pace over that of the fastest rank with the same work, 1 at most; in sampled steps."""


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """One all-reduce of fixed size on one group."""

    group: str
    nbytes: int
    group_size: int
    seconds: float
    """Without waiting."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What all-reduces between two steps took."""

    step: int
    """The step before."""
    samples: tuple[ProbeSample, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What was measured on held-out data."""

    loss: float
    """Nats per counted token."""
    exact_match: float | None = None
    """Share of examples that greedy decoding answers to the letter; None for running text."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Held-out data before the first or after the last step."""

    when: Literal["before", "after"]
    held_out: HeldOut


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A complete checkpoint."""

    step: int
    seconds: Mapping[str, float]
    """By phase; empty when it was found and not written."""


@dataclass(frozen=True, slots=True)
class SaveFailedReport:
    """A checkpoint that could not be written; training went on."""

    step: int


@dataclass(frozen=True, slots=True)
class HeartbeatReport:
    """Something that may take longer than a step got on: a tensor, or part of a file, is there."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a rank was doing when it was asked."""

    rank: int
    state: Literal["answers", "mute", "stopped"]
    """`mute`: it could not answer; `stopped`: by a signal."""
    step: int
    """The step it is in."""
    waits: bool
    """It waits for other ranks."""
    operations: tuple[str, ...]
    """Collectives that have not ended, by the flight recorder: `dp all_gather #51`."""
    stack: tuple[str, ...]
    """Functions of its main thread, innermost first: `decoder.py:120 forward`."""


Report = (
    PhaseReport
    | StepReport
    | ProbeReport
    | EvaluationReport
    | CheckpointReport
    | SaveFailedReport
    | HeartbeatReport
    | FailureInfo
    | Statement
)
Send = Callable[[Report], None]
