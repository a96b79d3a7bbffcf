"""Decide when all ranks of a gang start, restart, save or end.

The launcher of rank 0's pod runs the coordinator. It is pure: events and the time go in, commands
for all launchers come out. Ranks run in generations. After a retryable failure all ranks are killed
and the next generation starts in the same pods, from the newest complete checkpoint. Any other
failure, or one that recurs too often, ends the gang; what happens then is up to the operator.
Of a job with `network.tuning`, each generation is a trial.
"""

from __future__ import annotations

import math
import signal
from typing import Literal

from llmtrain_core.api.env import EXIT_PEER_LOST
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.launcher.restart.first_cause import first_cause
from llmtrain_trainer.launcher.restart.hang_detection import find_culprit
from llmtrain_trainer.launcher.restart.messages import (
    Command,
    Done,
    DumpStacks,
    End,
    Failed,
    HangCleared,
    HangSuspected,
    LauncherEvent,
    NextTrial,
    PauseSteps,
    Ready,
    Registered,
    Restart,
    StacksReported,
    StartRanks,
    StepsPaused,
    StopAfterStep,
    StopRequested,
)
from llmtrain_trainer.launcher.restart.network_trials import NetworkTrials
from llmtrain_trainer.runtime.reports import RankDump

CAUSE_SECONDS = 2.0
"""How long to wait, after a lost peer, for the failure that may have caused it."""

STACKS_SECONDS = 5.0
"""How long launchers may take to report the stacks of their ranks."""

EXIT_TERMINATED = 128 + signal.SIGTERM

NOTHING_TO_SAVE = "before it had anything to save"

Phase = Literal["waiting", "running", "dumping", "pausing", "stopping", "ended"]
"""`waiting`: for all launchers to be ready; `stopping`: after a last step."""


class RestartCoordinator:
    """The state of a gang. The transport numbers the launchers."""

    def __init__(
        self,
        world_size: int,
        max_restarts: int,
        startup_timeout: float,
        saves: bool,
        trials: NetworkTrials | None = None,
    ) -> None:
        """`max_restarts` counts restarts in a row, without a newer checkpoint.

        All launchers have to be ready `startup_timeout` seconds after the first one. `saves`: the
        job has checkpoints. `trials`: each generation is a trial of variables.
        """
        self._world_size, self._saves, self._trials = world_size, saves, trials
        self._nodes: dict[int, str] = {}
        """Node of every connected launcher."""
        self._max_restarts, self._startup_timeout = max_restarts, startup_timeout
        self._launchers: dict[int, tuple[int, ...]] = {}
        """Ranks of every connected launcher."""
        self._replied: set[int] = set()
        """Launchers that have sent the event that the current phase waits for."""
        self._done: set[int] = set()
        """Launchers whose ranks of this generation all exited with code 0, in any phase."""
        self._failures: list[FailureInfo] = []
        self._dumps: list[RankDump] = []
        self._suspicion: HangSuspected | None = None
        self._last_progress = math.inf
        """Seconds since any rank made progress, over all launchers that have reported stacks."""
        self._last_started = self._last_saved = self._restarts_in_a_row = 0
        self._stop_requested = False
        self._no_rdma = ""
        self.phase: Phase = "waiting"
        self.generation = 0
        self.deadline: float | None = None
        """When `on_deadline` is due."""

    def on_event(self, launcher: int, event: LauncherEvent, now: float) -> tuple[Command, ...]:
        """Handle an event of a launcher and return the commands for all launchers.

        Raises ValueError for an event that is not valid in this state.
        """
        if isinstance(event, Registered):
            self._register(launcher, event)
            return ()
        if launcher not in self._launchers:
            raise ValueError(f"a launcher must register before it sends {event.kind}")
        if isinstance(event, StopRequested):
            return self._on_stop_requested()
        if event.generation != self.generation or self.phase == "ended":
            return ()  # of ranks that have exited
        match event:
            case Ready():
                return self._on_ready(launcher, now)
            case Failed():
                return self._on_failed(event.cause, now)
            case HangSuspected():
                return self._on_hang_suspected(event, now)
            case StacksReported():
                return self._on_stacks_reported(launcher, event)
            case StepsPaused():
                return self._on_steps_paused(launcher, event)
            case Done():
                return self._on_done(launcher)

    def on_disconnect(self, launcher: int) -> tuple[Command, ...]:
        """End the gang: the operator has to replace the pod of this launcher."""
        ranks = self._launchers.pop(launcher, None)
        if ranks is None or self.phase == "ended":
            return ()
        return self._end(_lost_peer(f"the pod of {_named(ranks)} is gone"))

    def on_checkpoint(self, step: int) -> None:
        """Reset the count of restarts in a row: there is a complete checkpoint of this step."""
        if step > self._last_saved:
            self._last_saved, self._restarts_in_a_row = step, 0

    def on_deadline(self, now: float) -> tuple[Command, ...]:
        """Continue without the events that did not arrive in time."""
        if self.deadline is None or now < self.deadline:
            return ()
        self.deadline = None
        if self.phase == "waiting":
            ready = {rank for launcher in self._replied for rank in self._launchers[launcher]}
            missing = tuple(rank for rank in range(self._world_size) if rank not in ready)
            text = f"{_named(missing)} did not get ready within {self._startup_timeout:.0f} s"
            return self._end(_lost_peer(text))
        return self._resolve()

    def _register(self, launcher: int, event: Registered) -> None:
        taken = {rank for ranks in self._launchers.values() for rank in ranks}
        if launcher in self._launchers or taken & set(event.ranks):
            raise ValueError(f"{_named(event.ranks)} registered twice")
        if not event.ranks or not set(event.ranks) <= set(range(self._world_size)):
            raise ValueError(f"{event.ranks[:8]} are not ranks below {self._world_size}")
        self._launchers[launcher], self._nodes[launcher] = event.ranks, event.node
        if event.no_rdma and not self._no_rdma:  # ranks of one gang use one network
            self._no_rdma = f"{_named(event.ranks)}: {event.no_rdma[:256]}"

    def _on_ready(self, launcher: int, now: float) -> tuple[Command, ...]:
        if self.phase != "waiting":
            return ()
        if not self._replied:
            self.deadline = now + self._startup_timeout
        if not self._all_in(self._replied, launcher):
            return ()
        self._enter("running")
        self._done = set()
        variables = {} if self._trials is None else self._start_trial(self._trials)
        if variables is None:
            return self._end(None)
        return (StartRanks(self.generation, no_rdma=self._no_rdma, variables=variables),)

    def _start_trial(self, trials: NetworkTrials) -> dict[str, str] | None:
        ordered = sorted(self._launchers.items(), key=lambda each: min(each[1]))
        trials.place([self._nodes[launcher] for launcher, _ in ordered])
        return trials.start()

    def _next_trial(self, has_next: bool) -> tuple[Command, ...]:
        if not has_next:
            return self._end(None)
        self._restarts_in_a_row = 0
        self.generation += 1
        self._enter("waiting")
        return (NextTrial(self.generation),)

    def _on_failed(self, cause: FailureInfo, now: float) -> tuple[Command, ...]:
        if self.phase == "waiting":
            return ()
        self._failures.append(cause)
        if not cause.is_consequence:
            return self._restart_or_end(cause)
        if len(self._failures) == 1:
            self.deadline = now + CAUSE_SECONDS
        return ()

    def _on_hang_suspected(self, event: HangSuspected, now: float) -> tuple[Command, ...]:
        if self.phase != "running" or self._failures:
            return ()
        self._enter("dumping")
        self._suspicion, self.deadline = event, now + STACKS_SECONDS
        return (DumpStacks(self.generation),)

    def _on_stacks_reported(self, launcher: int, event: StacksReported) -> tuple[Command, ...]:
        if self.phase != "dumping":
            return ()
        self._dumps += event.dumps
        if event.seconds is not None:
            self._last_progress = min(self._last_progress, event.seconds)
        return self._resolve() if self._all_in(self._replied, launcher) else ()

    def _resolve(self) -> tuple[Command, ...]:
        """Act on the failures or the suspected hang.

        It is no hang if any rank still makes progress: while rank 0 writes an export for an hour,
        all others wait for it.
        """
        if self._failures:
            return self._restart_or_end(first_cause(self._failures))
        if self._suspicion is not None and self._last_progress < self._suspicion.allowed:
            cleared = HangCleared(self.generation, self._last_progress)
            self._enter("running")
            return (cleared,)
        return self._restart_or_end(self._hang())

    def _on_stop_requested(self) -> tuple[Command, ...]:
        self._stop_requested = True
        if self.phase in ("pausing", "stopping", "ended"):
            return ()
        if self.phase not in ("running", "dumping") or not self._saves:
            return self._end(terminated(NOTHING_TO_SAVE))
        self._enter("pausing")
        self._last_started = 0
        return (PauseSteps(self.generation),)

    def _on_steps_paused(self, launcher: int, event: StepsPaused) -> tuple[Command, ...]:
        if self.phase != "pausing":
            return ()
        self._last_started = max(self._last_started, event.started)
        if not self._all_in(self._replied, launcher):
            return ()
        if not self._last_started:  # ranks still load or evaluate
            return self._end(terminated(NOTHING_TO_SAVE))
        self._enter("stopping")
        return (StopAfterStep(self.generation, self._last_started),)

    def _on_done(self, launcher: int) -> tuple[Command, ...]:
        if self.phase == "waiting" or not self._all_in(self._done, launcher):
            return ()
        if self.phase == "stopping":
            return self._end(terminated(f"after it had saved step {self._last_started}"))
        return self._end(None) if self._trials is None else self._next_trial(self._trials.finish())

    def _restart_or_end(self, cause: FailureInfo) -> tuple[Command, ...]:
        """Restart in place if the cause is retryable and the limit allows it; else end.

        A GPU that cannot be used is not left by a restart in place. A candidate that fails ends its
        trial only.
        """
        if self._trials is not None and self._trials.is_of_a_candidate and cause.keeps_nodes:
            return self._next_trial(self._trials.fail(cause.reason))
        exhausted = self._restarts_in_a_row >= self._max_restarts
        stays = cause.retryable and cause.keeps_nodes
        if self._stop_requested or not stays or exhausted:
            return self._end(cause)
        self._restarts_in_a_row += 1
        self.generation += 1
        self._enter("waiting")
        return (Restart(self.generation, cause),)

    def _hang(self) -> FailureInfo:
        seconds = self._suspicion.seconds if self._suspicion else 0.0
        dumped = {dump.rank for dump in self._dumps}
        missing = [rank for rank in range(self._world_size) if rank not in dumped]
        return find_culprit(self._dumps, missing, seconds)

    def _end(self, cause: FailureInfo | None) -> tuple[Command, ...]:
        self._enter("ended")
        return (End(cause),)

    def _enter(self, phase: Phase) -> None:
        self.phase, self.deadline = phase, None
        self._suspicion, self._last_progress = None, math.inf
        self._replied, self._failures, self._dumps = set(), [], []

    def _all_in(self, launchers: set[int], launcher: int) -> bool:
        """Add a launcher to a set; return True if the set then has the launchers of all ranks."""
        launchers.add(launcher)
        return sum(len(self._launchers.get(one, ())) for one in launchers) == self._world_size


def terminated(when: str) -> FailureInfo:
    """Return the cause of the end of a gang whose pods received SIGTERM."""
    text = f"the pod received a stop signal, {when}"
    return FailureInfo("Terminated", text, exit_code=EXIT_TERMINATED)


def _lost_peer(text: str) -> FailureInfo:
    return FailureInfo("PeerLost", text, exit_code=EXIT_PEER_LOST)


def _named(ranks: tuple[int, ...]) -> str:
    """Return the ranks as text of bounded length."""
    some = ", ".join(map(str, ranks[:16]))
    rest = f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""
    return f"rank {some}" if len(ranks) == 1 else f"ranks {some}{rest}"
