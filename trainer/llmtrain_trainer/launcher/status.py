"""The pod's `/status` document, as the pod contract has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import REASON_LENGTH
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.api.status.job import TrainerPhase
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus
from llmtrain_trainer.runtime.reports import UNKNOWN_GROUP, CollectiveSample, NcclReport


@dataclass(frozen=True, slots=True)
class LastRestart:
    """The last restart in place."""

    time: datetime
    """When the coordinator decided on it."""
    cause: FailureInfo

    def document(self) -> dict[str, Any]:
        """Return the entry of the pod contract."""
        return {
            "time": self.time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "rank": self.cause.rank,
            "reason": clean_text(self.cause.reason, REASON_LENGTH),
            "message": clean_text(self.cause.message, 512),
        }


@dataclass(frozen=True, slots=True)
class Status:
    """State of the training, as reported by the lowest rank of this pod."""

    attempt: int
    phase: TrainerPhase = "preparing"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    last_checkpoint_step: int | None = None
    held_out_loss_before: float | None = None
    held_out_loss_during: float | None = None
    held_out_loss_after: float | None = None
    exact_match_before: float | None = None
    exact_match_during: float | None = None
    exact_match_after: float | None = None
    heartbeat: datetime | None = None
    utilization_source: str | None = None
    utilization_ratio: float | None = None
    collectives: tuple[CollectiveSample, ...] = field(default=())
    restarts_in_place: int = 0
    last_restart: LastRestart | None = None
    network_fallback: str | None = None
    nccl: NcclReport | None = None
    """What NCCL says it uses; in the pod of rank 0 only."""
    transfers: Mapping[str, Any] | None = None
    """Slowdowns of all groups (`SlowdownReport`); in the pod of rank 0 only."""
    chat_template: str | None = None
    communication: CommunicationTuning | None = None
    """Trials of communication settings; in the pod of rank 0 only."""
    network_tuning: NetworkTuningStatus | None = None
    """Trials of variables (`network.tuning`); in the pod of rank 0 only."""

    def with_progress(self, **changes: Any) -> Status:
        """Return the status with changes and a new heartbeat, which marks progress, not uptime."""
        return replace(self, heartbeat=datetime.now(UTC), **changes)

    def result(self) -> dict[str, Any]:
        """Return the result of a finished job: the document without its momentary parts."""
        utilization = None
        if self.utilization_source is not None:
            utilization = {"source": self.utilization_source, "ratio": self.utilization_ratio}
        return {
            "phase": self.phase,
            "attempt": self.attempt,
            "step": self.step,
            "totalSteps": self.total_steps,
            "loss": _finite(self.loss),
            "gradNorm": _finite(self.grad_norm),
            "stepSeconds": self.step_seconds,
            "tokensPerSecond": self.tokens_per_second,
            "mfu": self.mfu,
            "lastCheckpointStep": self.last_checkpoint_step,
            "heldOutLossBefore": _finite(self.held_out_loss_before),
            "heldOutLossDuring": _finite(self.held_out_loss_during),
            "heldOutLossAfter": _finite(self.held_out_loss_after),
            "exactMatchBefore": self.exact_match_before,
            "exactMatchDuring": self.exact_match_during,
            "exactMatchAfter": self.exact_match_after,
            "restartsInPlace": self.restarts_in_place,
            "lastRestart": self.last_restart.document() if self.last_restart else None,
            "networkFallback": self._why_tcp(),
            "chatTemplate": self.chat_template,
            "utilization": utilization,
            "collectives": [_collective(s) for s in self.collectives if s.group != UNKNOWN_GROUP],
        }

    def document(self) -> dict[str, Any]:
        """Return the document of `/status`."""
        heartbeat = self.heartbeat.strftime("%Y-%m-%dT%H:%M:%SZ") if self.heartbeat else None
        return {
            **self.result(),
            "heartbeat": heartbeat,
            "nccl": self.nccl.network.to_wire() if self.nccl else None,
            "transfers": self.transfers,
            "communication": self.communication.to_wire() if self.communication else None,
            "networkTuning": self.network_tuning.to_wire() if self.network_tuning else None,
        }

    def _why_tcp(self) -> str | None:
        """Return why the ranks use TCP: the trainer's reason, else what NCCL says."""
        said = self.nccl.why_unexpected if self.nccl else ""
        return self.network_fallback or said[:512] or None


def _collective(sample: CollectiveSample) -> Mapping[str, Any]:
    """Return the entry of the pod contract; 0 seconds for point-to-point, which is not timed."""
    seconds = sample.seconds
    return {
        "group": sample.group,
        "op": sample.op,
        "count": sample.count,
        "bytesPerStep": sample.nbytes,
        "meanSeconds": sum(seconds) / len(seconds) if seconds else 0.0,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
