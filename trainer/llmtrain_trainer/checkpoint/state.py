"""The state in a checkpoint: what is saved of a model in training, and how it is restored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from llmtrain_trainer.checkpoint.checksums import verify_files
from llmtrain_trainer.checkpoint.collective import run_on_all
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint
from llmtrain_trainer.checkpoint.paths import URI_FIELD, Folder
from llmtrain_trainer.checkpoint.retry import retry_transient
from llmtrain_trainer.checkpoint.shards import load_index, read_state
from llmtrain_trainer.model.lora import is_adapter
from llmtrain_trainer.parallel.replicate.replica_sync import ReplicaSync
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True, strict=False)
"""Optimizer state is keyed by parameter name: indices would collide between pipeline stages. Frozen
parameters are not saved: they are in the base checkpoint. Names that are missing in a checkpoint
are an error when it is read, before the state is set."""

MODEL, OPTIMIZER = "model", "optimizer"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state of one rank in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    replica_sync: ReplicaSync

    def state_dict(self) -> dict[str, Any]:
        """Return the state by name. The tensors are those of training, not copies."""
        return {**self._weights(self.replica_sync.weights_prefix), **self.replica_sync.state_dict()}

    def load(self, folder: Folder, group: dist.ProcessGroup | None) -> None:
        """Read a checkpoint of any layout; collective over the ranks of `group`.

        Replicas that train independently have their own weights. In another layout all replicas
        load those of the first.
        """
        index = run_on_all(partial(load_index, folder), group)
        saved = index.state_dict_metadata
        prefix = self.replica_sync.weights_prefix
        if not any(name.startswith(f"{prefix}{MODEL}.") for name in saved):
            prefix = ""
        device = next(self.model.parameters()).device
        replica_state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
            for name, entry in saved.items()
            if isinstance(entry, TensorStorageMetadata)
            and name.startswith(self.replica_sync.state_prefixes)
        }
        state = {**self._weights(prefix), **replica_state}
        run_on_all(partial(read_state, folder, index, state), group)
        set_model_state_dict(self.model, state[prefix + MODEL], options=_FLAT)
        set_optimizer_state_dict(
            self.model, self.optimizer, state[prefix + OPTIMIZER], options=_FLAT
        )
        self.replica_sync.load_state_dict({name: state[name] for name in replica_state})

    def _weights(self, prefix: str) -> dict[str, Any]:
        """Return weights and optimizer state, with `prefix` before their names."""
        return {
            prefix + MODEL: get_model_state_dict(self.model, options=_FLAT),
            prefix + OPTIMIZER: get_optimizer_state_dict(self.model, self.optimizer, options=_FLAT),
        }


def weights_state(model: nn.Module) -> dict[str, Any]:
    """Return the weights only, without adapters."""
    named = get_model_state_dict(model, options=StateDictOptions())
    return {MODEL: {name: each for name, each in named.items() if not is_adapter(name)}}


def load_weights(folder: Folder, model: nn.Module) -> None:
    """Load the weights of a checkpoint, without adapters; collective over all ranks."""
    state = weights_state(model)
    run_on_all(lambda: read_state(folder, load_index(folder), state), dist.group.WORLD)
    set_model_state_dict(model, state[MODEL], options=StateDictOptions(strict=False))


def require_intact(folder: Folder, field: str = URI_FIELD) -> None:
    """Raise InputError if files of a checkpoint are missing or truncated.

    One rank checks this before any rank reads. Overwritten weights are detected when they are read:
    every rank compares the checksums of what it needs.
    """
    try:
        metadata = load_index(folder)
        retry_transient(partial(verify_files, folder, metadata))
    except (DamagedFileError, FileNotFoundError) as error:
        raise corrupt_checkpoint(folder, error, field) from error
    ends: dict[str, int] = {}
    for entry in (metadata.storage_data or {}).values():
        ends[entry.relative_path] = max(
            ends.get(entry.relative_path, 0), entry.offset + entry.length
        )
    for name, end in sorted(ends.items()):
        path = folder / name
        try:
            size = retry_transient(path.stat).st_size
        except FileNotFoundError as error:
            raise corrupt_checkpoint(folder, error, field) from error
        if size < end:
            raise corrupt_checkpoint(folder, EOFError(f"{name} has {size} of {end} bytes"), field)
