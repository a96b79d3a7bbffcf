"""What a rank's end means, which of several is the cause, and the exit code. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST
from llmtrain_trainer.runtime.reports import FailureReport


@dataclass(frozen=True, slots=True)
class RankExit:
    """How a rank's process ended."""

    rank: int
    code: int
    """Exit code; negative: the number of the signal that killed it."""
    report: FailureReport | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a gang ends or starts again."""

    rank: int | None
    """None: no single rank's doing."""
    exit_code: int
    report: FailureReport
    consequence: bool = False
    """The failure only tells of another one: a peer was lost."""


def cause_of(exit: RankExit) -> Cause:
    """Say why a rank failed that ended like this."""
    code = _exit_code(exit)
    consequence = exit.code == EXIT_PEER_LOST and exit.report is not None
    return Cause(exit.rank, code, exit.report or _unspoken(exit, code), consequence)


def first_cause(causes: Sequence[Cause]) -> Cause:
    """Return the cause among failures in the order they were seen.

    A lost peer is a cause only where nothing else failed: the rank that killed the group may be
    noticed after those it took with it.
    """
    return next((cause for cause in causes if not cause.consequence), causes[0])


def _exit_code(exit: RankExit) -> int:
    """Return the pod's exit code for a rank's: 128 + n for signal n, else the rank's own."""
    if exit.code < 0:
        return 128 - exit.code
    return exit.code if exit.code < 256 else EXIT_EXCEPTION


def _unspoken(exit: RankExit, code: int) -> FailureReport:
    if exit.code < 0:
        try:
            name = signal.Signals(-exit.code).name
        except ValueError:
            name = f"signal {-exit.code}"
        text = f"rank {exit.rank} was killed by {name}"
        if -exit.code == signal.SIGKILL:
            text += " (out of memory, or someone killed it)"
        return FailureReport("Signal", text, None, None, code)
    return FailureReport(
        "ExitCode", f"rank {exit.rank} exited with code {exit.code}", None, None, code
    )
