"""Resume from the latest checkpoint that can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from llmtrain_trainer.checkpoint.collective import broadcast_from_rank0
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint, is_corruption
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, latest_complete
from llmtrain_trainer.checkpoint.paths import Folder, step_folder
from llmtrain_trainer.checkpoint.retention import read_lease
from llmtrain_trainer.checkpoint.state import TrainingState, require_intact
from llmtrain_trainer.errors import InputError

log = logging.getLogger(__name__)


def resume(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[CheckpointMetadata], None],
    state: TrainingState,
    group: dist.ProcessGroup,
) -> CheckpointMetadata | None:
    """Load the latest complete checkpoint that is not corrupt; collective over all ranks.

    `require` raises InputError for a checkpoint of another job. Returns None if there is no
    checkpoint. Raises InputError on every rank if all are corrupt, or if the latest is of another
    job.
    """
    bad: dict[int, InputError] = {}
    while True:
        with ExitStack() as lease:
            try:
                chosen = broadcast_from_rank0(
                    partial(_choose, root, architecture, require, bad, lease), group
                )
            except InputError as error:
                raise next(iter(bad.values()), error) from None
            if chosen is None and bad:
                raise next(iter(bad.values()))
            if chosen is None:
                return None
            metadata = CheckpointMetadata.from_wire(chosen)
            folder = step_folder(root, metadata.step)
            try:
                state.load(folder, group)
            except Exception as error:
                if not is_corruption(error):
                    raise
                bad[metadata.step] = corrupt_checkpoint(folder, error)
                log.warning("%s; trying the checkpoint before it", bad[metadata.step].message)
                continue
        if bad:
            log.warning("resumed from step %d: steps %s cannot be used", metadata.step, sorted(bad))
        return metadata


def _choose(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[CheckpointMetadata], None],
    bad: dict[int, InputError],
    lease: ExitStack,
) -> dict[str, Any] | None:
    """Choose on rank 0, which holds the read lease for all ranks. Return the metadata as JSON."""
    while True:
        metadata = latest_complete(root, torch.__version__, architecture, bad, require_intact)
        if metadata is None:
            return None
        require(metadata)
        if lease.enter_context(read_lease(step_folder(root, metadata.step))):
            return metadata.to_wire()
