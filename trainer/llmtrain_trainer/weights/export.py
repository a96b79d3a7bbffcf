"""Export a checkpoint to a Hugging Face folder."""

from __future__ import annotations

from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder
from llmtrain_trainer.checkpoint.retention import read_lease
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.weights.huggingface import Dtype, export
from llmtrain_trainer.weights.reading import (
    find_checkpoint,
    saved_architecture,
    weights_of_checkpoint,
)


def export_checkpoint(
    root: Folder,
    to: Folder,
    tokenizer: Folder | None = None,
    dtype: Dtype = "float32",
    heartbeat: Heartbeat = no_heartbeat,
) -> CheckpointMetadata:
    """Export the latest complete checkpoint in `root`, or `root` itself; return its metadata.

    Without `tokenizer`, the tokenizer that was saved with the weights is copied.
    """
    folder, metadata = find_checkpoint(root)
    saved = folder / TOKENIZER
    if tokenizer is None and saved.is_file():
        tokenizer = saved
    architecture = saved_architecture(folder, metadata)
    with read_lease(folder):
        read = weights_of_checkpoint(folder, architecture)
        export(read, architecture, to, tokenizer, dtype, heartbeat=heartbeat)
    return metadata
