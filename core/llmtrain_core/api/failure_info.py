"""Why something failed: one value from a rank to the conditions of its job.

A pod reports its failure in its termination message, as docs/contract.md defines it. Reading is
tolerant, because the container of a job can write anything there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.defaults import (
    FIRST_RETRYABLE_EXIT_CODE,
    MAX_XID,
    MAX_XIDS,
    REASON_LENGTH,
    TERMINATION_MESSAGE_BYTES,
)
from llmtrain_core.api.env import EXIT_PEER_LOST
from llmtrain_core.api.untrusted import read_json

TRAINER_REASONS = frozenset(
    {
        "CheckpointMismatch",
        "CheckpointNotWritten",
        "CheckpointUnreadable",
        "CommunicationTrialFailed",
        "CompileFailed",
        "CompileMismatch",
        "CorpusCorrupt",
        "CorpusMismatch",
        "CorpusMissing",
        "CorpusTooSmall",
        "CorpusUnreadable",
        "Exception",
        "ExitCode",
        "ExportNotWritable",
        "ExportUnsupported",
        "GpuError",
        "ImportUnsupported",
        "InvalidEnvironment",
        "InvalidSpec",
        "LossNotFinite",
        "MemlockTooLow",
        "ModelUnreadable",
        "PeerLost",
        "PortInUse",
        "RankHung",
        "Signal",
        "Terminated",
        "WeightsNotFinite",
    }
)
"""Reasons that our trainer reports. A third-party trainer may write others of its own."""

RESERVED_REASONS = frozenset(reason.value for reason in Reason) - TRAINER_REASONS
"""Reasons of the operator's own findings, which a termination message cannot give."""


class FailureEvidence(StrEnum):
    """What a failure is evidence of. It decides for which jobs it counts against its node."""

    JOB = "Job"
    """The job: its container ended by itself, or its objects cannot be used."""
    NODE = "Node"
    """The node itself: it was lost, or its kubelet rejected the pod."""
    START = "Start"
    """Only this job speaks against the node: its pod did not start there, those of its peers did.
    Or the kubelet rejected the pod for a cause that may be the pod's own."""
    XID = "Xid"
    """Only this job speaks against the node: its pod reports an Xid after which the GPU cannot be
    used."""
    DISRUPTION = "Disruption"
    """The cluster ended the pod: drain, eviction, preemption, shutdown of the node, deletion.
    This says nothing against the node."""


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """One failure of a rank, a pod or a node."""

    reason: str
    message: str
    field: str | None = None
    """Path in the job that the user has to correct, such as `spec.data.sources[0].uri`."""
    remedy: str | None = None
    """What the user can do about it."""
    exit_code: int | None = None
    """Exit code of the container; None if there is none."""
    rank: int | None = None
    """None if no single rank is the cause."""
    node: str = ""
    transient: bool = False
    """The next try may succeed, whatever the exit code is."""
    keeps_nodes: bool = True
    """The next attempt may use the same node."""
    evidence: FailureEvidence = FailureEvidence.JOB
    xids: tuple[int, ...] = ()
    """Xids of the pod's GPUs that are the cause."""

    @property
    def retryable(self) -> bool:
        """Whether the next try may succeed."""
        code = self.exit_code
        return self.transient or code is None or code >= FIRST_RETRYABLE_EXIT_CODE

    @property
    def is_consequence(self) -> bool:
        """Whether another failure is the cause: this one only lost the connection to a peer."""
        return self.reason == Reason.PEER_LOST and self.exit_code == EXIT_PEER_LOST

    def to_termination_message(self) -> bytes:
        """Return the termination message, with bounded texts, as the pod contract has it."""
        error: dict[str, Any] = {
            "reason": clean_text(self.reason, REASON_LENGTH),
            "message": clean_text(self.message),
            "field": clean_text(self.field, 256) if self.field else None,
            "remedy": clean_text(self.remedy, 512) if self.remedy else None,
            "rank": self.rank,
            "exitCode": self.exit_code,
            **({"xids": list(self.xids)} if self.xids else {}),
        }
        data = _encode(error)
        if len(data) > TERMINATION_MESSAGE_BYTES:  # characters of up to four bytes each
            shorter = {"message": clean_text(self.message, 256), "remedy": None}
            data = _encode({**error, **shorter})
        return data

    @classmethod
    def from_termination_message(cls, text: str | bytes) -> FailureInfo | None:
        """Read a termination message; None if it is not one of the pod contract's.

        Texts are returned as they were written: bound and clean them before they are shown.
        """
        document = read_json(text)
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict):
            return None
        texts = {key: value for key, value in error.items() if isinstance(value, str)}
        numbers = {key: value for key, value in error.items() if type(value) is int}
        if not {"reason", "message"} <= texts.keys():
            return None
        return cls(
            texts["reason"],
            texts["message"],
            texts.get("field"),
            texts.get("remedy"),
            numbers.get("exitCode"),
            numbers.get("rank"),
            xids=_read_xids(error.get("xids")),
        )


def _read_xids(found: Any) -> tuple[int, ...]:
    """Return the codes of Xids; numbers that are none are left out."""
    items = found[:MAX_XIDS] if isinstance(found, list) else []
    return tuple(item for item in items if type(item) is int and 0 < item < MAX_XID)


def _encode(error: dict[str, Any]) -> bytes:
    return json.dumps({"error": error}, ensure_ascii=False, allow_nan=False).encode()
