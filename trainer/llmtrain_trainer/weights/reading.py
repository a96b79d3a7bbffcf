"""Read whole weights of a checkpoint by decoder name.

A model may be larger than memory, so callers read a few tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint, is_corruption
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, read_metadata
from llmtrain_trainer.checkpoint.paths import (
    URI_FIELD,
    Folder,
    newest_checkpoint,
)
from llmtrain_trainer.checkpoint.state import MODEL, require_intact, storage_reader
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.workarounds import catchable_checkpoint_errors

ReadWeights = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Returns whole tensors on the CPU. Raises InputError if one is missing or corrupt."""


def weight_shapes(architecture: Architecture) -> dict[str, torch.Size]:
    """Return the shape of every weight of a model. A tied weight is listed as input embedding."""
    with torch.device("meta"):
        model = Decoder(architecture)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def weights_of_checkpoint(folder: Folder) -> ReadWeights:
    """Return a function that reads a complete checkpoint of any layout. Needs no process group."""
    require_intact(folder)
    known = storage_reader(folder).read_metadata().state_dict_metadata

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name in names:
            found = known.get(f"{MODEL}.{name}")
            if not isinstance(found, TensorStorageMetadata):
                raise corrupt_checkpoint(folder, KeyError(name))
            state[f"{MODEL}.{name}"] = torch.empty(found.size, dtype=found.properties.dtype)
        try:
            with catchable_checkpoint_errors():
                dcp.load(state, storage_reader=storage_reader(folder), no_dist=True)  # type: ignore[attr-defined]
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
