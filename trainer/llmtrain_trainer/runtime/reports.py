"""The values that a rank sends to its launcher through a pipe.

The launcher has one metrics registry, fed by a pipe per rank. The multiprocess mode of
prometheus-client does not fit: it leaves a memory-mapped file per process behind, does not define
gauges of dead processes, and cannot carry the status or the cause of a failure. A message per step
costs some tens of microseconds. The launcher always reads the pipe, so a rank never blocks on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.api.status.job import TrainerPhase
from llmtrain_core.api.status.network import NcclNetwork
from llmtrain_core.network.links import GroupKey
from llmtrain_core.network.transfer_times import SampleBlock
from llmtrain_core.plan.network.communication import SCALAR_BYTES


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """The rank entered a phase."""

    phase: TrainerPhase
    step: int
    total_steps: int | None = None
    """Steps of the whole run, where the rank knows it from the data."""


UNKNOWN_GROUP = "other"
"""Label of a process group that is not a dimension of the grid."""


@dataclass(frozen=True, slots=True)
class CollectiveSample:
    """All calls of one collective on one group in a sampled step of one rank."""

    group: str
    op: str
    payloads: tuple[int, ...]
    """Bytes of each call: the size of the whole tensor, not of what the algorithm transfers."""
    group_size: int
    seconds: tuple[float, ...]
    """One duration per call; empty for point-to-point operations, which are not timed."""
    waits: tuple[float, ...] = ()
    """Seconds of each duration before the last rank arrived, if known."""

    @property
    def count(self) -> int:
        """Number of calls."""
        return len(self.payloads)

    @property
    def nbytes(self) -> int:
        """Payload of all calls."""
        return sum(self.payloads)

    def without_scalars(self) -> CollectiveSample:
        """Return the calls with more than `SCALAR_BYTES`, whose durations depend on the payload."""
        return self._calls([nbytes > SCALAR_BYTES for nbytes in self.payloads])

    def scalars(self) -> CollectiveSample:
        """Return the calls with at most `SCALAR_BYTES`, such as the sum of a loss."""
        return self._calls([nbytes <= SCALAR_BYTES for nbytes in self.payloads])

    def _calls(self, keep: Sequence[bool]) -> CollectiveSample:
        kept = [index for index, wanted in enumerate(keep) if wanted]
        if len(kept) == len(keep):
            return self
        return replace(
            self,
            payloads=tuple(self.payloads[index] for index in kept),
            seconds=tuple(self.seconds[index] for index in kept if self.seconds),
            waits=tuple(self.waits[index] for index in kept if self.waits),
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Number of steps done, including this one."""
    seconds: float
    phases: Mapping[str, float]
    """Seconds by part of the step."""
    tokens: int
    """Real tokens over all ranks: padding is not counted."""
    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    collectives: tuple[CollectiveSample, ...] = field(default=())
    straggler_score: float | None = None
    """Speed relative to the fastest rank with the same work, 1 at most; in sampled steps only."""
    attention_span: float | None = None
    """Mean over the tokens of the length of their document; None for the sequence length."""


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """One all-reduce of fixed size on one group."""

    group: str
    nbytes: int
    group_size: int
    seconds: float
    """Without waiting for other ranks."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Durations of the network probe between two steps."""

    step: int
    """The step before the probe."""
    samples: tuple[ProbeSample, ...]


Transfer = Literal["collectives", "probe"]
"""What was transferred: the collectives of a sampled step, or the larger payload of a probe."""


@dataclass(frozen=True, slots=True)
class GroupTransfer:
    """The transfer time of one group over a block of samples, without waiting."""

    group: GroupKey
    block: SampleBlock


@dataclass(frozen=True, slots=True)
class TransferReport:
    """The transfer times of the groups of the whole job, from rank 0."""

    kind: Transfer
    groups: tuple[GroupTransfer, ...]


@dataclass(frozen=True, slots=True)
class CommunicationReport:
    """The trials of communication settings so far, from rank 0."""

    tuning: CommunicationTuning


@dataclass(frozen=True, slots=True)
class NcclReport:
    """What NCCL says it uses, from rank 0 after its first step."""

    network: NcclNetwork
    why_unexpected: str = ""
    """Why it is not the network of the pods; empty if it is."""


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Result of an evaluation on held-out data."""

    loss: float
    """Nats per counted token, over all sources."""
    exact_match: float | None = None
    """Share of examples for which greedy decoding gives the exact response; None for plain text."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Nats per counted token, by source."""


EvaluationTime = Literal["before", "during", "after"]
"""When an evaluation takes place: before the first step, between two steps, or after the last."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Result of an evaluation of the job."""

    when: EvaluationTime
    score: HeldOutScore
    step: int
    """Number of steps done."""


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A complete checkpoint."""

    step: int
    seconds: Mapping[str, float]
    """By phase; empty if the checkpoint was found, not written."""


@dataclass(frozen=True, slots=True)
class SaveFailedReport:
    """A checkpoint that could not be written; training continues."""

    step: int


@dataclass(frozen=True, slots=True)
class HeartbeatReport:
    """Progress inside a long operation: a tensor, or a part of a file, was read or written."""


@dataclass(frozen=True, slots=True)
class RankDump:
    """What a rank was doing when its launcher requested a dump."""

    rank: int
    state: Literal["responsive", "unresponsive", "stopped"]
    """`unresponsive`: the rank sent no dump in time; `stopped`: by a signal."""
    step: int
    """The current step."""
    waiting: bool
    """The rank waits for other ranks."""
    operations: tuple[str, ...]
    """Unfinished collectives in the flight recorder, such as `dp all_gather #51`."""
    stack: tuple[str, ...]
    """Frames of the main thread, innermost first, such as `decoder.py:120 forward`."""


Report = (
    PhaseReport
    | StepReport
    | ProbeReport
    | TransferReport
    | CommunicationReport
    | NcclReport
    | EvaluationReport
    | CheckpointReport
    | SaveFailedReport
    | HeartbeatReport
    | FailureInfo
    | RankDump
)
Send = Callable[[Report], None]
