"""What the launchers of a gang agree on: when all ranks start, start again, save, or end.

Held by the launcher of rank 0's pod and pure: words and the time go in, orders for all launchers
come out. Ranks live in generations. A failure that may pass ends a generation everywhere and starts
the next one in the same pods, from the newest complete checkpoint; what does not pass, or keeps
coming back, ends the gang, and the operator decides.
"""

from __future__ import annotations

import math
import signal
from typing import Literal

from llmtrain_core.api.env import EXIT_PEER_LOST
from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.launcher.restart.failure_cause import first_cause
from llmtrain_trainer.launcher.restart.hang_detection import accuse
from llmtrain_trainer.launcher.restart.messages import (
    Asked,
    Done,
    End,
    Explain,
    Failed,
    Finish,
    Held,
    Hold,
    Joined,
    Order,
    Patience,
    Ready,
    Restart,
    Silent,
    Start,
    Stated,
    Word,
)
from llmtrain_trainer.runtime.reports import Statement

CAUSE_SECONDS = 2.0
"""After a lost peer, how long to wait for the failure that may have caused it."""

STATEMENT_SECONDS = 5.0
"""How long launchers may take to say what silent ranks do."""

EXIT_TERMINATED = 128 + signal.SIGTERM

NOTHING_TO_SAVE = "before it had anything to save"

Phase = Literal["gathering", "running", "explaining", "holding", "finishing", "ended"]


class Agreement:
    """The gang's state. Launchers are numbered by whoever carries their words."""

    def __init__(self, world_size: int, most_restarts: int, startup: float, saves: bool) -> None:
        """`most_restarts`: in a row, without a newer checkpoint. `startup`: seconds to gather."""
        self._world, self._most, self._startup, self._saves = (
            world_size,
            most_restarts,
            startup,
            saves,
        )
        self._members: dict[int, tuple[int, ...]] = {}
        self._answered: set[int] = set()
        """Who has answered what the current phase asks of every launcher."""
        self._ended: set[int] = set()
        """Whose ranks of this generation all ended well, in whatever phase that was."""
        self._failures: list[FailureInfo] = []
        self._statements: list[Statement] = []
        self._silent: Silent | None = None
        self._moved = math.inf
        """Seconds since a rank last showed progress, of all launchers that have stated."""
        self._started = self._saved = self._in_a_row = 0
        self._asked = False
        self.phase: Phase = "gathering"
        self.generation = 0
        self.deadline: float | None = None
        """When `expire` is due."""

    def hear(self, member: int, word: Word, now: float) -> tuple[Order, ...]:
        """Take a launcher's word; return what all launchers are told.

        Raises ValueError for a word that makes no sense.
        """
        if isinstance(word, Joined):
            self._join(member, word)
            return ()
        if member not in self._members:
            raise ValueError(f"a launcher must join before it says {word.kind}")
        if isinstance(word, Asked):
            return self._stop()
        if word.generation != self.generation or self.phase == "ended":
            return ()  # of ranks that are gone
        match word:
            case Ready():
                return self._ready(member, now)
            case Failed():
                return self._failed(word.cause, now)
            case Silent():
                return self._explain(word, now)
            case Stated():
                return self._state(member, word)
            case Held():
                return self._held(member, word)
            case Done():
                return self._done(member)

    def lose(self, member: int) -> tuple[Order, ...]:
        """A launcher is gone: its pod is the operator's business, and so is the gang."""
        ranks = self._members.pop(member, None)
        if ranks is None or self.phase == "ended":
            return ()
        return self._end(_lost_peer(f"the pod of {_named(ranks)} is gone"))

    def saved(self, step: int) -> None:
        """There is a complete checkpoint of this step: restarts before it were not in vain."""
        if step > self._saved:
            self._saved, self._in_a_row = step, 0

    def expire(self, now: float) -> tuple[Order, ...]:
        """Go on where something was waited for in vain."""
        if self.deadline is None or now < self.deadline:
            return ()
        self.deadline = None
        if self.phase == "gathering":
            there = {rank for member in self._answered for rank in self._members[member]}
            missing = tuple(rank for rank in range(self._world) if rank not in there)
            text = f"{_named(missing)} did not get ready within {self._startup:.0f} s"
            return self._end(_lost_peer(text))
        return self._judge()

    def _join(self, member: int, word: Joined) -> None:
        taken = {rank for ranks in self._members.values() for rank in ranks}
        if member in self._members or taken & set(word.ranks):
            raise ValueError(f"{_named(word.ranks)} joined twice")
        if not word.ranks or not set(word.ranks) <= set(range(self._world)):
            raise ValueError(f"{word.ranks[:8]} are no ranks below {self._world}")
        self._members[member] = word.ranks

    def _ready(self, member: int, now: float) -> tuple[Order, ...]:
        if self.phase != "gathering":
            return ()
        if not self._answered:
            self.deadline = now + self._startup
        if not self._all(self._answered, member):
            return ()
        self._enter("running")
        self._ended = set()
        return (Start(self.generation),)

    def _failed(self, cause: FailureInfo, now: float) -> tuple[Order, ...]:
        if self.phase == "gathering":
            return ()
        self._failures.append(cause)
        if not cause.is_consequence:
            return self._settle(cause)
        if len(self._failures) == 1:
            self.deadline = now + CAUSE_SECONDS
        return ()

    def _explain(self, word: Silent, now: float) -> tuple[Order, ...]:
        if self.phase != "running" or self._failures:
            return ()
        self._enter("explaining")
        self._silent, self.deadline = word, now + STATEMENT_SECONDS
        return (Explain(self.generation),)

    def _state(self, member: int, word: Stated) -> tuple[Order, ...]:
        if self.phase != "explaining":
            return ()
        self._statements += word.statements
        if word.seconds is not None:
            self._moved = min(self._moved, word.seconds)
        return self._judge() if self._all(self._answered, member) else ()

    def _judge(self) -> tuple[Order, ...]:
        """Tell a gang that hangs from one that waits for a rank which is getting on.

        Where rank 0 writes an export for an hour, all others are silent and nothing is wrong.
        """
        if self._failures:
            return self._settle(first_cause(self._failures))
        if self._silent is not None and self._moved < self._silent.allowed:
            patience = Patience(self.generation, self._moved)
            self._enter("running")
            return (patience,)
        return self._settle(self._hung())

    def _stop(self) -> tuple[Order, ...]:
        self._asked = True
        if self.phase in ("holding", "finishing", "ended"):
            return ()
        if self.phase not in ("running", "explaining") or not self._saves:
            return self._end(terminated(NOTHING_TO_SAVE))
        self._enter("holding")
        self._started = 0
        return (Hold(self.generation),)

    def _held(self, member: int, word: Held) -> tuple[Order, ...]:
        if self.phase != "holding":
            return ()
        self._started = max(self._started, word.started)
        if not self._all(self._answered, member):
            return ()
        if not self._started:  # ranks still load or evaluate
            return self._end(terminated(NOTHING_TO_SAVE))
        self._enter("finishing")
        return (Finish(self.generation, self._started),)

    def _done(self, member: int) -> tuple[Order, ...]:
        if self.phase == "gathering" or not self._all(self._ended, member):
            return ()
        if self.phase == "finishing":
            return self._end(terminated(f"after it had saved step {self._started}"))
        return self._end(None)

    def _settle(self, cause: FailureInfo) -> tuple[Order, ...]:
        """Restart in place where that may help and is allowed; else end."""
        if self._asked or not cause.retryable or self._in_a_row >= self._most:
            return self._end(cause)
        self._in_a_row += 1
        self.generation += 1
        self._enter("gathering")
        return (Restart(self.generation, cause),)

    def _hung(self) -> FailureInfo:
        seconds = self._silent.seconds if self._silent else 0.0
        stated = {statement.rank for statement in self._statements}
        absent = [rank for rank in range(self._world) if rank not in stated]
        return accuse(self._statements, absent, seconds)

    def _end(self, cause: FailureInfo | None) -> tuple[Order, ...]:
        self._enter("ended")
        return (End(cause),)

    def _enter(self, phase: Phase) -> None:
        self.phase, self.deadline = phase, None
        self._silent, self._moved = None, math.inf
        self._answered, self._failures, self._statements = set(), [], []

    def _all(self, answered: set[int], member: int) -> bool:
        """Add a launcher to those that answered; tell whether that makes all ranks."""
        answered.add(member)
        return sum(len(self._members.get(one, ())) for one in answered) == self._world


def terminated(when: str) -> FailureInfo:
    """Return the cause of a gang that was asked to stop."""
    text = f"the pod was asked to stop, {when}"
    return FailureInfo("Terminated", text, exit_code=EXIT_TERMINATED)


def _lost_peer(text: str) -> FailureInfo:
    return FailureInfo("PeerLost", text, exit_code=EXIT_PEER_LOST)


def _named(ranks: tuple[int, ...]) -> str:
    """Name ranks in a bounded text."""
    some = ", ".join(map(str, ranks[:16]))
    rest = f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""
    return f"rank {some}" if len(ranks) == 1 else f"ranks {some}{rest}"
