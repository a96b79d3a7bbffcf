"""Read whole weights of a checkpoint by decoder name.

A model may be larger than memory, so callers read a few tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint, is_corruption
from llmtrain_trainer.checkpoint.init_from import base_checkpoint
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, read_metadata
from llmtrain_trainer.checkpoint.paths import (
    METADATA_FILE,
    URI_FIELD,
    Folder,
    newest_checkpoint,
)
from llmtrain_trainer.checkpoint.retention import read_lease
from llmtrain_trainer.checkpoint.shards import load_index, read_state
from llmtrain_trainer.checkpoint.state import MODEL, require_intact
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.lora import ATTRIBUTE
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, first_problem

ReadWeights = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Returns whole tensors on the CPU. Raises InputError if one is missing or corrupt."""


def weight_shapes(architecture: Architecture) -> dict[str, torch.Size]:
    """Return the shape of every weight of a model. A tied weight is listed as input embedding."""
    with torch.device("meta"):
        model = Decoder(architecture)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def weights_of_checkpoint(folder: Folder, architecture: Architecture) -> ReadWeights:
    """Return a function that reads a complete checkpoint of any layout. Needs no process group."""
    shapes = weight_shapes(architecture)
    read = _tensors_of_checkpoint(folder)
    return lambda names: read({name: shapes[name] for name in names})


def merged_weights(
    folder: Folder, base: Folder, architecture: Architecture, lora: Mapping[str, Any]
) -> ReadWeights:
    """Return a function that reads the weights of `base` with the adapters of `folder` merged."""
    weights, rank = weights_of_checkpoint(base, architecture), int(lora["rank"])
    adapters = dict(adapters_of_checkpoint(folder, architecture, rank))
    scale = float(lora["alpha"]) / rank

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        found = dict(weights(names))
        for name in set(names) & adapters.keys():
            a, b = adapters[name]
            found[name] += scale * (b @ a)
        return found

    return read


def adapters_of_checkpoint(
    folder: Folder, architecture: Architecture, rank: int
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield the name of every weight with an adapter, and its A (rank, in) and B (out, rank)."""
    read, present = _tensors_of_checkpoint(folder), load_index(folder).state_dict_metadata
    for name, shape in weight_shapes(architecture).items():
        adapter = f"{name.removesuffix('.weight')}.{ATTRIBUTE}"
        if name.endswith(".weight") and f"{MODEL}.{adapter}.a" in present:
            outputs, inputs = shape
            sizes = {"a": torch.Size([rank, inputs]), "b": torch.Size([outputs, rank])}
            parts = read({f"{adapter}.{part}": size for part, size in sizes.items()})
            yield name, (parts[f"{adapter}.a"], parts[f"{adapter}.b"])


@dataclass(frozen=True, slots=True)
class CheckpointWeights:
    """A checkpoint and the weights of its whole model."""

    folder: Folder
    metadata: CheckpointMetadata
    architecture: Architecture
    read: ReadWeights


@contextmanager
def open_weights(root: Folder, base: Folder | None = None) -> Iterator[CheckpointWeights]:
    """Open the latest complete checkpoint in `root`, or `root` itself, while it is leased.

    Adapters are merged into their base: `base`, or the one that their checkpoint records. Raises
    InputError if the base is not there or is another one.
    """
    folder, metadata = find_checkpoint(root)
    architecture = saved_architecture(folder, metadata)
    if metadata.lora is None:
        with read_lease(folder):
            yield CheckpointWeights(
                folder, metadata, architecture, weights_of_checkpoint(folder, architecture)
            )
        return
    below = _base_of_adapters(folder, metadata, base)
    with read_lease(folder), read_lease(below):
        read = merged_weights(folder, below, architecture, metadata.lora)
        yield CheckpointWeights(folder, metadata, architecture, read)


def _base_of_adapters(folder: Folder, metadata: CheckpointMetadata, base: Folder | None) -> Folder:
    recorded = metadata.base
    try:
        if base is None:
            if recorded is None:
                raise InputError("CheckpointMismatch", "it does not record its base")
            uri = str(recorded["uri"])
        else:
            uri = base.resolve().as_uri() if isinstance(base, Path) else str(base)
        return base_checkpoint(uri, torch.__version__, metadata.architecture, recorded).folder
    except InputError as error:
        raise InputError(
            "CheckpointMismatch",
            f"{folder} holds adapters only, and their base cannot be used: {error.message}",
            field=URI_FIELD,
            remedy="name the base with --base, or the folder merged/ that training.lora.merge"
            " writes",
        ) from error


def _tensors_of_checkpoint(folder: Folder) -> Callable[[Mapping[str, torch.Size]], dict[str, Any]]:
    """Return a function that reads tensors by name and size."""
    require_intact(folder)
    index = load_index(folder)

    def read(sizes: Mapping[str, torch.Size]) -> dict[str, Any]:
        state: dict[str, Tensor] = {}
        for name, size in sizes.items():
            found = index.state_dict_metadata.get(f"{MODEL}.{name}")
            if not isinstance(found, TensorStorageMetadata):
                raise corrupt_checkpoint(folder, DamagedFileError(f"it has no tensor {name}"))
            if found.size != size:
                problem = f"{name} has shape {list(found.size)}, not {list(size)}"
                raise corrupt_checkpoint(folder, DamagedFileError(problem))
            state[f"{MODEL}.{name}"] = torch.empty(found.size, dtype=found.properties.dtype)
        try:
            read_state(folder, index, state)
        except Exception as error:
            if not is_corruption(error):
                raise
            raise corrupt_checkpoint(folder, error) from error
        return {name: state[f"{MODEL}.{name}"] for name in sizes}

    return read


def find_checkpoint(root: Folder, field: str = URI_FIELD) -> tuple[Folder, CheckpointMetadata]:
    """Return a checkpoint and its metadata: `root` itself, or the latest complete one in it."""
    remedy = "name the checkpoint.uri of a job, or one of its step folders"
    folder = newest_checkpoint(root, field, remedy)
    return folder, read_metadata(folder, torch.__version__, field)


def saved_architecture(folder: Folder, metadata: CheckpointMetadata) -> Architecture:
    """Return the architecture of a checkpoint. Raises InputError if there is no such model."""
    try:
        return Architecture.from_wire(metadata.architecture)
    except ValidationError as error:
        problem = f"{METADATA_FILE}: architecture: {first_problem(error)}"
        raise corrupt_checkpoint(folder, DamagedFileError(problem)) from error
