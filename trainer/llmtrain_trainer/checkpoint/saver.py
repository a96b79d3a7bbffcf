"""Saving at once or in the background, and what becomes of it when a disk is full.

Both go the same way: rank 0 empties the folder, all ranks write, the marker comes last, rank 0
deletes old checkpoints. In the background that happens on a thread, with a copy of the state in
main memory and process groups of its own: training's would mix both sides' messages up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from llmtrain_trainer.checkpoint.paths import Facts, Folder, remove, step_folder, write_facts
from llmtrain_trainer.checkpoint.retention import purge
from llmtrain_trainer.checkpoint.state import TrainingState, weights, write
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat

PATIENCE = timedelta(days=1)
"""How long ranks wait for the slowest one's part, which may be an export of hours; one that does
not get on is found by the launchers' watch."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one save."""

    step: int
    stage: float
    """Seconds that training waited for its state to be collected."""
    upload: float
    """Seconds of writing."""
    error: Exception | None = None
    """Why there is no such checkpoint."""


class Saver:
    """One rank's part in the checkpoints of a run. Made by all ranks at the same time."""

    def __init__(
        self,
        root: Folder,
        keep: int,
        *,
        background: bool,
        tokenizer: Path | None = None,
        heartbeat: Heartbeat = no_heartbeat,
    ) -> None:
        self.root, self.keep, self.tokenizer, self._heartbeat = root, keep, tokenizer, heartbeat
        group = dist.new_group(backend="gloo", timeout=PATIENCE, group_desc="checkpoint")
        assert isinstance(group, dist.ProcessGroup)  # every rank is in it
        self.group = group
        self._threads = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._stager = _stager() if background else None
        self._pending: Future[Outcome] | None = None
        self._waits = not background
        """Training waits for what is written; else a write must not hide that training hangs."""

    def save(self, facts: Facts, state: TrainingState, tell: Callable[[Outcome], None]) -> None:
        """Save; collective over all ranks. `tell` gets the outcomes of this save or earlier ones.

        In the background: waits for the one before, copies the state and returns.
        """
        start = time.perf_counter()
        self.finish(tell)
        taken = state.take()
        if self._threads is None or self._stager is None:
            tell(self._write(facts, taken, time.perf_counter() - start))
            return
        staged = self._stager.stage(taken)
        waited = time.perf_counter() - start
        self._pending = self._threads.submit(self._write, facts, staged, waited)

    def look(self, tell: Callable[[Outcome], None]) -> None:
        """Tell the outcome of a save in the background if it has ended; waits for nobody."""
        if self._pending is not None and self._pending.done():
            self.finish(tell)

    def finish(self, tell: Callable[[Outcome], None]) -> None:
        """Wait for a save in the background and tell its outcome."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._waits = True
            outcome = pending.result()
            self._waits = False
            tell(outcome)

    def save_merged(self, facts: Facts, model: nn.Module) -> None:
        """Write weights alone into `merged/`, and keep no other there; collective, at once."""
        root = self.root / "merged"
        self._empty_folder(root, facts)
        write(step_folder(root, facts.step), weights(model), self.group, self._heartbeat)
        self._tidy(lambda: purge(root, 1, facts.step))

    def _write(self, facts: Facts, state: Any, waited: float) -> Outcome:
        """Write one checkpoint; an error becomes the outcome on all ranks.

        A rank that went away fails the step as well, so nothing is lost by not raising it here.
        """
        start = time.perf_counter()
        try:
            self._empty_folder(self.root, facts)
            write(step_folder(self.root, facts.step), state, self.group, self._heartbeat_if_waiting)
        except Exception as error:
            log.warning("no checkpoint of step %d: %r", facts.step, error)
            self._tidy(lambda: remove(step_folder(self.root, facts.step)))
            return Outcome(facts.step, waited, time.perf_counter() - start, error)
        self._tidy(lambda: purge(self.root, self.keep, facts.step))
        return Outcome(facts.step, waited, time.perf_counter() - start)

    def _heartbeat_if_waiting(self) -> None:
        if self._waits:
            self._heartbeat()

    def _empty_folder(self, root: Folder, facts: Facts) -> None:
        """Let rank 0 prepare the folder; nobody touches it before. Raises on all ranks or none."""
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                write_facts(root, facts, self.tokenizer)
            except Exception as error:  # drivers of stores raise what they like
                problem[0] = f"{type(error).__name__}: {error}"
        dist.broadcast_object_list(problem, src=0, group=self.group)
        if problem[0] is not None:
            raise OSError(problem[0])

    def _tidy(self, clean: Callable[[], None]) -> None:
        """Clean up on rank 0; what cannot be deleted now can be after the next save."""
        if dist.get_rank() == 0:
            try:
                clean()
            except Exception as error:
                log.warning("cannot tidy up %s: %r", self.root, error)


def _stager() -> DefaultStager:
    """Return what copies a state into main memory, in buffers that are kept for the next time.

    The copy has ended when it returns, since the next step changes what is copied.
    """
    device = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=device,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=device,
        )
    )
