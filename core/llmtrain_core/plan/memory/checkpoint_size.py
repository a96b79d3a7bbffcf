"""Bytes on disk: the tokens to read and the checkpoints to keep."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.training_setup import COMPUTE_BYTES, MASTER_BYTES, TrainingSetup

SMALL_VOCABULARY = 2**16
"""Token numbers below this are stored in two bytes, above in four."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes on disk."""

    tokens: int
    """The training tokens, each read once."""
    checkpoint: int
    """One checkpoint: weights and both Adam moments of all that learns."""
    checkpoints: int
    """All that are kept, and the one being written."""
    export: int
    """The weights alone, in the type of the products."""


def token_bytes(vocabulary: int) -> int:
    """Return the bytes of one stored token."""
    return 2 if vocabulary <= SMALL_VOCABULARY else 4


def storage(setup: TrainingSetup, tokens: int, keep: int = 2) -> Storage:
    """Return what a run reads and writes; `keep` complete checkpoints are kept."""
    parameters = count_parameters(setup.shape).total
    one = 3 * MASTER_BYTES[setup.precision] * count_parameters(setup.shape).learning
    return Storage(
        tokens=tokens * token_bytes(setup.shape.vocab_size),
        checkpoint=one,
        checkpoints=one * (keep + 1),
        export=COMPUTE_BYTES[setup.precision] * parameters,
    )
