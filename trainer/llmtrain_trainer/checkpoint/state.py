"""The state in a checkpoint, and how torch's distributed checkpoint writes and reads it.

Each rank writes its shards. A checkpoint of one layout loads in any other layout.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, WriteItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.futures import Future

from llmtrain_trainer.checkpoint.checksums import (
    ChecksumStoreWriter,
    ChecksumWriter,
    verify_entry,
    verify_files,
    verify_marker,
)
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint
from llmtrain_trainer.checkpoint.paths import COMPLETE_MARKER, URI_FIELD, Folder
from llmtrain_trainer.checkpoint.retry import retry_transient
from llmtrain_trainer.model.lora import is_adapter
from llmtrain_trainer.parallel.replicate.replica_sync import ReplicaSync
from llmtrain_trainer.parallel.workarounds import catchable_checkpoint_errors
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat

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
        saved = storage_reader(folder).read_metadata().state_dict_metadata
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
        with catchable_checkpoint_errors():
            dcp.load(state, storage_reader=storage_reader(folder), process_group=group)  # type: ignore[attr-defined]
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


def write_state(
    folder: Folder,
    state: dict[str, Any],
    group: dist.ProcessGroup | None,
    heartbeat: Heartbeat = no_heartbeat,
) -> None:
    """Write a state into an empty folder; collective over the ranks of `group`, if any."""
    with catchable_checkpoint_errors():
        dcp.save(  # type: ignore[attr-defined]
            state,
            storage_writer=_storage_writer(folder),
            planner=_HeartbeatPlanner(heartbeat),
            process_group=group,
            no_dist=group is None,
        )


class _HeartbeatPlanner(DefaultSavePlanner):
    """Sends a heartbeat for every tensor before it is written."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__()
        self._heartbeat = heartbeat

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return the data to write."""
        self._heartbeat()
        return super().resolve_data(write_item)


def weights_state(model: nn.Module) -> dict[str, Any]:
    """Return the weights only, without adapters."""
    named = get_model_state_dict(model, options=StateDictOptions())
    return {MODEL: {name: each for name, each in named.items() if not is_adapter(name)}}


def load_weights(folder: Folder, model: nn.Module) -> None:
    """Load the weights of a checkpoint, without adapters; collective over all ranks."""
    state = weights_state(model)
    with catchable_checkpoint_errors():
        dcp.load(state, storage_reader=storage_reader(folder))  # type: ignore[attr-defined]
    set_model_state_dict(model, state[MODEL], options=StateDictOptions(strict=False))


def require_intact(folder: Folder, field: str = URI_FIELD) -> None:
    """Raise InputError if files of a checkpoint are missing or truncated.

    One rank checks this before any rank reads. Overwritten weights are detected when they are read:
    every rank compares the checksums of what it needs.
    """
    try:
        metadata = storage_reader(folder).read_metadata()
        retry_transient(partial(verify_files, folder, metadata))
    except (EOFError, FileNotFoundError, pickle.UnpicklingError) as error:
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


class _RetryingReader(FileSystemReader):
    """Retries transient read errors on its own rank, while the others wait in the collective."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the marker. Raises UnpicklingError if it is corrupt.

        torch turns every error here into an AssertionError, which would hide whether the file is
        corrupt or the file system does not respond.
        """
        return retry_transient(lambda: self._read_metadata(*args, **kwargs))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's part."""
        return retry_transient(lambda: super(_RetryingReader, self).read_data(plan, planner))

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        return verify_entry(super()._slice_file(file, sinfo), sinfo)

    def _read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            metadata = super().read_metadata(*args, **kwargs)
            verify_marker(metadata)
        except (OSError, EOFError):
            raise
        except Exception as error:  # corrupt bytes raise nearly any error, or allocate all memory
            raise pickle.UnpicklingError(f"{COMPLETE_MARKER}: {error!r}") from error
        return metadata


class _RetryingStoreReader(_RetryingReader, FsspecReader):
    pass


def storage_reader(folder: Folder) -> FileSystemReader:
    """Return torch's reader for a folder on a volume or in a store."""
    if isinstance(folder, Path):
        return _RetryingReader(folder)
    return _RetryingStoreReader(str(folder), **folder.storage_options)


def _storage_writer(folder: Folder) -> ChecksumWriter:
    if isinstance(folder, Path):
        writer = ChecksumWriter(folder)
    else:
        writer = ChecksumStoreWriter(str(folder), **folder.storage_options)
    writer.folder = folder
    return writer
