"""Read whole weights of a checkpoint by decoder name.

A model may be larger than memory, so callers read a few tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint, is_corruption
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, read_metadata
from llmtrain_trainer.checkpoint.paths import (
    METADATA_FILE,
    URI_FIELD,
    Folder,
    newest_checkpoint,
)
from llmtrain_trainer.checkpoint.shards import load_index, read_state
from llmtrain_trainer.checkpoint.state import MODEL, require_intact
from llmtrain_trainer.model.decoder import Decoder
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
    require_intact(folder)
    index = load_index(folder)
    shapes = weight_shapes(architecture)

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name in names:
            found = index.state_dict_metadata.get(f"{MODEL}.{name}")
            if not isinstance(found, TensorStorageMetadata):
                raise corrupt_checkpoint(folder, KeyError(name))
            if found.size != shapes[name]:
                problem = f"{name} has shape {list(found.size)}, not {list(shapes[name])}"
                raise corrupt_checkpoint(folder, DamagedFileError(problem))
            state[f"{MODEL}.{name}"] = torch.empty(found.size, dtype=found.properties.dtype)
        try:
            read_state(folder, index, state)
        except Exception as error:
            if not is_corruption(error):
                raise
            raise corrupt_checkpoint(folder, error) from error
        return {name: state[f"{MODEL}.{name}"] for name in names}

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
