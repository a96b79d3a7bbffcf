"""Which of a pod's failures is the cause, and the exit code it asks for. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST
from llmtrain_trainer.reports import FailureReport


@dataclass(frozen=True, slots=True)
class RankExit:
    """How a rank's process ended."""

    rank: int
    code: int
    """Exit code; negative: the number of the signal that killed it."""
    report: FailureReport | None

    @property
    def failed(self) -> bool:
        """Anything but a clean end."""
        return self.code != 0

    @property
    def only_lost_a_peer(self) -> bool:
        """The failure is a consequence of another one."""
        return self.code == EXIT_PEER_LOST and self.report is not None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the pod ends."""

    rank: int
    exit_code: int
    report: FailureReport


def first_cause(exits: Sequence[RankExit]) -> Cause | None:
    """Return the cause among exits in the order they were seen, None where nothing failed.

    A lost peer is a cause only where nothing else failed: the rank that killed the group may be
    noticed after those it took with it.
    """
    failed = [exit for exit in exits if exit.failed]
    if not failed:
        return None
    chosen = next((exit for exit in failed if not exit.only_lost_a_peer), failed[0])
    code = exit_code(chosen)
    return Cause(chosen.rank, code, chosen.report or _unspoken(chosen, code))


def exit_code(exit: RankExit) -> int:
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
