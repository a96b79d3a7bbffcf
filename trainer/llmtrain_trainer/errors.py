"""The trainer's errors; each has a reason and the exit code of the pod."""

from __future__ import annotations

from typing import ClassVar

from llmtrain_core.api.env import (
    EXIT_EXCEPTION,
    EXIT_INPUT,
    EXIT_PEER_LOST,
    EXIT_TRIAL_FAILED,
)


class TrainerError(Exception):
    """Base of all errors that the trainer itself raises."""

    exit_code: ClassVar[int] = EXIT_EXCEPTION
    retryable: ClassVar[bool] = False

    def __init__(
        self, reason: str, message: str, *, field: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Make the error picklable, for the pipe of a child process, with its keyword arguments."""
        return _rebuild, (type(self), self.reason, self.message, self.field, self.remedy)


class InputError(TrainerError):
    """The input of the job is wrong; `field` is the path in the job that has to be corrected."""

    exit_code = EXIT_INPUT


class PeerLostError(TrainerError):
    """The connection to another rank was lost; the cause is in another process."""

    exit_code = EXIT_PEER_LOST
    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__("PeerLost", message)


class TrialError(TrainerError):
    """A setting that was only tried does not work; after a restart the job goes on without it."""

    exit_code = EXIT_TRIAL_FAILED
    retryable = True


def _rebuild(
    kind: type[TrainerError], reason: str, message: str, field: str | None, remedy: str | None
) -> TrainerError:
    if issubclass(kind, PeerLostError):
        return kind(message)
    return kind(reason, message, field=field, remedy=remedy)
