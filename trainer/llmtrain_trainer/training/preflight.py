"""Checks before training starts."""

from __future__ import annotations

import math

from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import URI_FIELD
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime import json_collectives
from llmtrain_trainer.training.optimizer import learning_rate

RATE_TOLERANCE = 1e-3
"""Relative change of the learning rate, by another number of steps, that counts as none."""


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


def require_matching_run(metadata: CheckpointMetadata, data: str, run: RunConfig) -> None:
    """Raise InputError if a checkpoint was saved with different data, adapters or decay."""
    if metadata.data != data:
        raise _mismatch(
            metadata, "data", "the sources, heldOutFraction, vocabSize and seed it was saved with"
        )
    if metadata.lora != run.lora_metadata:
        raise _mismatch(metadata, "adapters", "the training.lora it was saved with")
    _require_same_packing(metadata, run)
    _require_continuous_rate(metadata, run)


def _require_same_packing(metadata: CheckpointMetadata, run: RunConfig) -> None:
    """Raise InputError if the job asks for another packing: the position counts sequences."""
    packed = bool(metadata.packed)
    if run.data.chat is None or run.packing is None or run.packing == packed:
        return
    raise InputError(
        "CheckpointMismatch",
        f"the checkpoint of step {metadata.step} was saved with{'' if packed else 'out'} packing of"
        " examples, and its position in the data counts these sequences",
        field="spec.data.packing",
        remedy="remove the field to go on as before, or use another folder",
    )


def _require_continuous_rate(metadata: CheckpointMetadata, run: RunConfig) -> None:
    """Raise InputError if another number of steps changes the learning rate of the next step.

    Checkpoints of older releases do not record the number of steps.
    """
    if metadata.steps is None or metadata.steps == run.steps:
        return
    step = metadata.step
    saved, now = (learning_rate(run.optimizer, step, each) for each in (metadata.steps, run.steps))
    if step <= run.steps and math.isclose(saved, now, rel_tol=RATE_TOLERANCE):
        return
    problem = f"the learning rate would jump from {saved:.3g} to {now:.3g}"
    if step > run.steps:
        problem = "it has more steps than the job"
    raise InputError(
        "CheckpointMismatch",
        f"the checkpoint of step {step} is of a run of {metadata.steps} steps, and the job has"
        f" {run.steps}: {problem}",
        field="spec.training.steps",
        remedy=f"train {metadata.steps} steps, or start from the checkpoint as model.initFrom in"
        " another checkpoint.uri (with schedule.decay constant, later changes are possible)",
    )


def _mismatch(metadata: CheckpointMetadata, what: str, own: str) -> InputError:
    return InputError(
        "CheckpointMismatch",
        f"the checkpoint of step {metadata.step} was saved with different {what}",
        field=URI_FIELD,
        remedy=f"use another folder, or {own}",
    )
