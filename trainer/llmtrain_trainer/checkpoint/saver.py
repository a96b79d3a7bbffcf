"""Save checkpoints synchronously or in the background, and handle failed writes.

In both cases rank 0 creates an empty folder, all ranks write, the marker comes last, and rank 0
deletes old checkpoints. In the background this runs on a thread with a copy of the state in main
memory and its own process groups, because messages of training and saving would be mixed in one
group.
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

from llmtrain_trainer.checkpoint.collective import run_on_all
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
from llmtrain_trainer.checkpoint.paths import (
    Folder,
    delete_checkpoint,
    folder_from_uri,
    step_folder,
)
from llmtrain_trainer.checkpoint.retention import purge
from llmtrain_trainer.checkpoint.shards import write_state
from llmtrain_trainer.checkpoint.state import TrainingState, weights_state
from llmtrain_trainer.config import CheckpointConfig
from llmtrain_trainer.data.prepared import tokenizer_of
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat

GROUP_TIMEOUT = timedelta(days=1)
"""Timeout for the slowest rank, whose part may be an export of hours. The launchers detect a rank
that hangs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveResult:
    """The result of one save."""

    step: int
    stage: float
    """Seconds that training waited until its state was copied."""
    upload: float
    """Seconds of writing."""
    error: Exception | None = None
    """Why the checkpoint was not written."""


def build_saver(
    checkpoint: CheckpointConfig | None, data: Path, heartbeat: Heartbeat
) -> Saver | None:
    """Return the saver of a job; None if it has no checkpoints. `data` has the tokenizer."""
    if checkpoint is None:
        return None
    return Saver(
        folder_from_uri(checkpoint.uri),
        checkpoint.keep,
        background=checkpoint.background,
        tokenizer=tokenizer_of(data),
        heartbeat=heartbeat,
    )


class Saver:
    """Saves the checkpoints of one rank. All ranks create it at the same time."""

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
        group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT, group_desc="checkpoint")
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        self.group = group
        self._threads = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._stager = _build_stager() if background else None
        self._pending: Future[SaveResult] | None = None
        self._training_waits = not background
        """Training waits for the write. Otherwise the heartbeats of a write must not hide a hang of
        training."""

    def save(
        self,
        metadata: CheckpointMetadata,
        state: TrainingState,
        report: Callable[[SaveResult], None],
    ) -> None:
        """Save; collective over all ranks. `report` gets the result of this or of earlier saves.

        In the background: wait for the previous save, copy the state and return.
        """
        start = time.perf_counter()
        self.wait(report)
        state_dict = state.state_dict()
        if self._threads is None or self._stager is None:
            report(self._write(metadata, state_dict, time.perf_counter() - start))
            return
        staged = self._stager.stage(state_dict)
        waited = time.perf_counter() - start
        self._pending = self._threads.submit(self._write, metadata, staged, waited)

    def poll(self, report: Callable[[SaveResult], None]) -> None:
        """Report the result of a background save if it has ended. Does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait(report)

    def wait(self, report: Callable[[SaveResult], None]) -> None:
        """Wait for a background save and report its result."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._training_waits = True
            outcome = pending.result()
            self._training_waits = False
            report(outcome)

    def save_merged(self, metadata: CheckpointMetadata, model: nn.Module) -> None:
        """Write weights only into `merged/` and delete others there; collective, synchronous."""
        root = self.root / "merged"
        self._create_folder(root, metadata)
        write_state(
            step_folder(root, metadata.step), weights_state(model), self.group, self._heartbeat
        )
        self._clean_up(lambda: purge(root, 1, metadata.step))

    def _write(self, metadata: CheckpointMetadata, state: Any, waited: float) -> SaveResult:
        """Write one checkpoint. An error becomes the result on all ranks.

        A lost rank also fails the training step, so it need not be raised here.
        """
        start = time.perf_counter()
        try:
            self._create_folder(self.root, metadata)
            write_state(
                step_folder(self.root, metadata.step),
                state,
                self.group,
                self._heartbeat_if_training_waits,
            )
        except Exception as error:
            log.warning("no checkpoint of step %d: %r", metadata.step, error)
            self._clean_up(lambda: delete_checkpoint(step_folder(self.root, metadata.step)))
            return SaveResult(metadata.step, waited, time.perf_counter() - start, error)
        self._clean_up(lambda: purge(self.root, self.keep, metadata.step))
        return SaveResult(metadata.step, waited, time.perf_counter() - start)

    def _heartbeat_if_training_waits(self) -> None:
        if self._training_waits:
            self._heartbeat()

    def _create_folder(self, root: Folder, metadata: CheckpointMetadata) -> None:
        """Create the folder on rank 0 before other ranks use it. Raises on all ranks or none."""

        def create() -> None:
            if dist.get_rank() == 0:
                create_step_folder(root, metadata, self.tokenizer)

        run_on_all(create, self.group)

    def _clean_up(self, clean: Callable[[], None]) -> None:
        """Clean up on rank 0. What cannot be deleted now is deleted after the next save."""
        if dist.get_rank() == 0:
            try:
                clean()
            except Exception as error:
                log.warning("cannot clean up %s: %r", self.root, error)


def _build_stager() -> DefaultStager:
    """Return a stager that copies the state into buffers in main memory, which are reused.

    The copy is complete when it returns, because the next step changes the state.
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
