"""Going on from the newest checkpoint that can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist

from llmtrain_trainer.checkpoint.damage import shows_damage
from llmtrain_trainer.checkpoint.folders import Facts, Folder, damaged, newest, step_folder
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
            facts = _agree(root, architecture, require, bad, lease, group)
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


def _agree(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[Facts], None],
    bad: dict[int, InputError],
    lease: ExitStack,
    group: dist.ProcessGroup,
) -> Facts | None:
    """Let rank 0 choose: a shared file system may show different ranks different folders.

    It also holds the lease for all of them.
    """
    found: list[Facts | InputError | None] = [None]
    if dist.get_rank() == 0:
        try:
            found[0] = _choose(root, architecture, require, bad, lease)
        except InputError as error:
            found[0] = error
    dist.broadcast_object_list(found, src=0, group=group)
    if isinstance(found[0], InputError):
        raise next(iter(bad.values()), found[0])
    return found[0]


def _choose(
    root: Folder,
    architecture: dict[str, Any],
    require: Callable[[Facts], None],
    bad: dict[int, InputError],
    lease: ExitStack,
) -> Facts | None:
    while True:
        facts = newest(root, torch.__version__, architecture, bad, require_whole)
        if facts is None:
            return None
        require(facts)
        if lease.enter_context(reading(step_folder(root, facts.step))):
            return facts
