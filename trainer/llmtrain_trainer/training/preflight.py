"""What ranks refuse before they train."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from llmtrain_trainer.checkpoint.paths import FIELD, Facts
from llmtrain_trainer.errors import InputError


def require_same_data(digest: str) -> None:
    """Compare what every pod prepared: with other text the same number is another token.

    Collective over all ranks. Raises InputError (`CorpusMismatch`) on all of them.
    """
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    others = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if others:
        raise InputError(
            "CorpusMismatch",
            f"ranks {others[:16]} prepared other data than rank 0",
            field="spec.data.sources",
            remedy="make every node see the same files: one image, or one shared volume",
        )


def require_own(facts: Facts, data: str, lora: dict[str, Any] | None) -> None:
    """Raise InputError for a checkpoint that was saved with other data or other adapters."""
    if facts.data != data:
        raise _other(
            facts, "data", "the sources, heldOutFraction, vocabSize and seed it was saved with"
        )
    if facts.lora != lora:
        raise _other(facts, "adapters", "the training.lora it was saved with")


def _other(facts: Facts, what: str, own: str) -> InputError:
    return InputError(
        "CheckpointMismatch",
        f"the checkpoint of step {facts.step} was saved with other {what}",
        field=FIELD,
        remedy=f"use another folder, or {own}",
    )
