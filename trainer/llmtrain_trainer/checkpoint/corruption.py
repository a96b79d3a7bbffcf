"""Telling a damaged checkpoint from one that could not be read this time."""

from __future__ import annotations

import pickle

from llmtrain_trainer.runtime.failures import exception_chain, is_peer_loss

_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)

_DAMAGE_WORDS = (
    "PytorchStreamReader failed",  # a shard that is cut short or overwritten
    "Missing key",
    "size mismatch",
    "mismatch sizes",
)
"""torch raises these as plain errors; in lower case they are compared."""


def shows_damage(error: BaseException) -> bool:
    """Tell whether a failure to load can only come from the files.

    Where any rank ran out of memory, lost a peer or was refused by the file system, nothing is
    known of the files: the same checkpoint may load next time.
    """
    causes = list(exception_chain(error))
    return any(map(_damaged, causes)) and not any(map(_passing, causes))


def _damaged(error: BaseException) -> bool:
    if isinstance(error, _DAMAGE):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, ValueError, AssertionError)) and any(
        word.lower() in text for word in _DAMAGE_WORDS
    )


def _passing(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, _DAMAGE)
    # torch's own by name: this module is read where torch is not imported
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return out_of_memory or is_peer_loss(error)
