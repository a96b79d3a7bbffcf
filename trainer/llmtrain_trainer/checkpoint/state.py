"""Saving and loading of model and optimizer by torch's distributed checkpoint.

Each rank writes its shards; a checkpoint written in one layout loads in any other.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from llmtrain_trainer.checkpoint.folders import MARKER, Facts, purge, step_folder, write_facts
from llmtrain_trainer.parallel.workarounds import catchable_checkpoint_errors

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
"""Optimizer state by parameter name: numbers would collide between pipeline stages."""


def save(
    root: Path, keep: int, facts: Facts, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """Write a checkpoint; collective over all ranks. Returns seconds by phase."""
    start = time.perf_counter()
    folder = step_folder(root, facts.step)
    if dist.get_rank() == 0:
        write_facts(root, facts)
    state = _state(model, optimizer)
    # nobody touches the folder before it has been emptied
    dist.barrier()
    staged = time.perf_counter()
    with catchable_checkpoint_errors():
        dcp.save(state, checkpoint_id=folder)  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        purge(root, keep)
    return {"stage": staged - start, "upload": time.perf_counter() - staged}


def load(root: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read a checkpoint into model and optimizer; collective over all ranks."""
    folder = step_folder(root, step)
    _check_metadata(folder)
    state = _state(model, optimizer)
    with catchable_checkpoint_errors():
        dcp.load(state, checkpoint_id=folder)  # type: ignore[attr-defined]
    set_model_state_dict(model, state["model"], options=_FLAT)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_FLAT)


def _check_metadata(folder: Path) -> None:
    """Read the metadata once before torch does.

    torch turns whatever goes wrong there into an AssertionError; damage and a file system that
    does not answer could not be told apart any more.
    """
    try:
        FileSystemReader(folder).read_metadata()
    except (OSError, MemoryError, EOFError):
        raise
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise pickle.UnpicklingError(f"{folder / MARKER}: {error!r}") from error


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model, options=_FLAT),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_FLAT),
    }
