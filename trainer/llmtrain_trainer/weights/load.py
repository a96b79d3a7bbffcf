"""Import a Hugging Face folder as a checkpoint of weights, from which jobs can start."""

from __future__ import annotations

from pathlib import Path

import torch

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder, step_folder
from llmtrain_trainer.checkpoint.shards import write_state
from llmtrain_trainer.checkpoint.state import MODEL
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.weights.huggingface import weights_of_huggingface
from llmtrain_trainer.weights.peft import is_adapters, merge_adapters
from llmtrain_trainer.weights.reading import weight_shapes


def import_checkpoint(
    source: Path, to: Folder, base: Path | None = None
) -> tuple[Folder, Architecture]:
    """Write the weights of a Hugging Face folder as the checkpoint of step 0 in `to`, in float32.

    Adapters of PEFT in `source` are merged into `base`, the folder of their model. Needs main
    memory for the whole model. Returns the checkpoint and its architecture.
    """
    if is_adapters(source) and base is None:
        raise InputError(
            "ModelUnreadable",
            f"{source} holds adapters only",
            remedy="name the folder of the model that they were trained on with --base",
        )
    architecture, read = weights_of_huggingface(base or source)
    if base is not None:
        read = merge_adapters(source, architecture, read)
    weights = read(list(weight_shapes(architecture)))
    tokenizer = source / TOKENIZER
    if base is not None and not tokenizer.is_file():
        tokenizer = base / TOKENIZER
    metadata = CheckpointMetadata(
        step=0,
        torch=torch.__version__,
        layout="imported",
        architecture=architecture.to_wire(),
        data="",
        sequences=0,
        held_out_before=None,
    )
    create_step_folder(to, metadata, tokenizer if tokenizer.is_file() else None)
    folder = step_folder(to, 0)
    write_state(folder, {MODEL: {name: tensor.float() for name, tensor in weights.items()}}, None)
    return folder, architecture
