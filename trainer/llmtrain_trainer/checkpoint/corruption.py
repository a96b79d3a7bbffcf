"""Corrupt checkpoints, and how they differ from checkpoints that could not be read this time."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_trainer.checkpoint.paths import URI_FIELD, Folder
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.exception_report import exception_chain, is_peer_loss
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError


class ChecksumError(DamagedFileError):
    """The checksum of bytes is not the one of what was written."""


_CORRUPTION = (
    DamagedFileError,
    pickle.UnpicklingError,  # torch's error for a tensor that is more than data
    EOFError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)

_CORRUPTION_MESSAGES = (
    "PytorchStreamReader failed",  # a shard that is truncated or overwritten
    "Missing key",
    "size mismatch",
    "mismatch sizes",
)
"""Parts of the messages of torch's plain errors. They are compared in lower case."""


@dataclass(frozen=True, slots=True)
class RankError:
    """The error of one rank, as the other ranks see it."""

    text: str
    corrupt: bool
    """The rank read bytes that are not what was written."""
    passing: bool
    """The rank has another reason to fail, which may be gone the next time."""
    checksum: bool
    """The corruption shows in a checksum."""

    @classmethod
    def of(cls, error: BaseException) -> RankError:
        """Classify an error of this rank."""
        causes = list(exception_chain(error))
        return cls(
            repr(error)[:2000],
            corrupt=any(map(_shows_corruption, causes)),
            passing=any(map(_may_pass, causes)),
            checksum=any(map(_fails_checksum, causes)),
        )


class RankFailuresError(RuntimeError):
    """A step that all ranks take has failed on some of them."""

    def __init__(self, errors: Mapping[int, RankError]) -> None:
        super().__init__("; ".join(f"rank {rank}: {each.text}" for rank, each in errors.items()))
        self.errors = errors


class CorruptCheckpointError(InputError):
    """The files of a checkpoint are not what was written."""


def corrupt_checkpoint(
    folder: Folder, error: BaseException, field: str = URI_FIELD
) -> CorruptCheckpointError:
    """Return the error for a checkpoint whose files are not what was written.

    It says "damaged" only if a checksum shows that bytes have changed.
    """
    damaged = any(map(_fails_checksum, exception_chain(error)))
    said = str(error) if isinstance(error, DamagedFileError) else repr(error)
    return CorruptCheckpointError(
        "CheckpointUnreadable",
        f"{folder} {'is damaged' if damaged else 'cannot be read'}: {said}",
        field=field,
        remedy="move this folder aside to resume from the checkpoint before it",
    )


def newer_release(folder: Folder, problem: str, field: str = URI_FIELD) -> InputError:
    """Return the error for a checkpoint whose files are whole, and not known to this release."""
    return InputError(
        "CheckpointUnreadable",
        f"{folder} was written by a newer release: {problem}",
        field=field,
        remedy="use the release that wrote it, or a newer one",
    )


def is_corruption(error: BaseException) -> bool:
    """Return True if only the files can be the cause of a failure to load.

    If any rank ran out of memory, lost a peer or was refused by the file system, the files may be
    intact: the same checkpoint may load next time.
    """
    causes = list(exception_chain(error))
    return any(map(_shows_corruption, causes)) and not any(map(_may_pass, causes))


def _fails_checksum(error: BaseException) -> bool:
    if isinstance(error, RankFailuresError):
        return any(each.checksum for each in error.errors.values())
    return isinstance(error, ChecksumError)


def _shows_corruption(error: BaseException) -> bool:
    if isinstance(error, RankFailuresError):
        return any(each.corrupt for each in error.errors.values())
    if isinstance(error, _CORRUPTION):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, ValueError, AssertionError)) and any(
        message.lower() in text for message in _CORRUPTION_MESSAGES
    )


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, RankFailuresError):
        return any(each.passing for each in error.errors.values())
    if isinstance(error, OSError):
        return not isinstance(error, _CORRUPTION)
    # torch's own error by name: the launcher imports this module without torch
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return out_of_memory or is_peer_loss(error)
