"""Going on from the newest checkpoint that can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from llmtrain_trainer.checkpoint.collective import first_rank_chooses
from llmtrain_trainer.checkpoint.corruption import shows_damage
from llmtrain_trainer.checkpoint.paths import Facts, Folder, damaged, newest, step_folder
from llmtrain_trainer.checkpoint.retention import reading
from llmtrain_trainer.checkpoint.state import TrainingState, require_whole
from llmtrain_trainer.errors import InputError

log = logging.getLogger(__name__)


def resume(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[Facts], None],
    state: TrainingState,
    group: dist.ProcessGroup,
) -> Facts | None:
    """Load the newest complete checkpoint that is not damaged; collective over all ranks.

    `require` raises InputError for one that is not this job's. Returns None where there is none.
    Raises InputError on every rank where all are damaged or the newest is not this job's.
    """
    bad: dict[int, InputError] = {}
    while True:
        with ExitStack() as lease:
            try:
                facts = first_rank_chooses(
                    partial(_choose, root, architecture, require, bad, lease), group
                )
            except InputError as error:
                raise next(iter(bad.values()), error) from None
            if facts is None and bad:
                raise next(iter(bad.values()))
            if facts is None:
                return None
            folder = step_folder(root, facts.step)
            try:
                state.load(folder, group)
            except Exception as error:
                if not shows_damage(error):
                    raise
                bad[facts.step] = damaged(folder, error)
                log.warning("%s; looking for the checkpoint before it", bad[facts.step].message)
                continue
        if bad:
            log.warning("went on from step %d: steps %s are damaged", facts.step, sorted(bad))
        return facts


def _choose(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[Facts], None],
    bad: dict[int, InputError],
    lease: ExitStack,
) -> Facts | None:
    """Choose on rank 0, which holds the lease for all ranks."""
    while True:
        facts = newest(root, torch.__version__, architecture, bad, require_whole)
        if facts is None:
            return None
        require(facts)
        if lease.enter_context(reading(step_folder(root, facts.step))):
            return facts
