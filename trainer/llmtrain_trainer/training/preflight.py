"""Checks before training starts."""

from __future__ import annotations

from typing import Any

from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import URI_FIELD
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime import json_collectives


def require_same_data(digest: str) -> None:
    """Raise InputError (`CorpusMismatch`) on all ranks unless all pods have prepared the same data.

    With different data the same token id can mean different text. Collective over all ranks.
    """
    digests = json_collectives.all_gather(digest)
    others = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if others:
        raise InputError(
            "CorpusMismatch",
            f"ranks {others[:16]} prepared different data than rank 0",
            field="spec.data.sources",
            remedy="make every node see the same files: one image, or one shared volume",
        )


def require_matching_run(
    metadata: CheckpointMetadata, data: str, lora: dict[str, Any] | None
) -> None:
    """Raise InputError if a checkpoint was saved with different data or adapters."""
    if metadata.data != data:
        raise _mismatch(
            metadata, "data", "the sources, heldOutFraction, vocabSize and seed it was saved with"
        )
    if metadata.lora != lora:
        raise _mismatch(metadata, "adapters", "the training.lora it was saved with")


def _mismatch(metadata: CheckpointMetadata, what: str, own: str) -> InputError:
    return InputError(
        "CheckpointMismatch",
        f"the checkpoint of step {metadata.step} was saved with different {what}",
        field=URI_FIELD,
        remedy=f"use another folder, or {own}",
    )
