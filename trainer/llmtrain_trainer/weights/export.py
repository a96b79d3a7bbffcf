"""Export a checkpoint to a Hugging Face folder."""

from __future__ import annotations

from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.weights.huggingface import Dtype, export
from llmtrain_trainer.weights.reading import open_weights


def export_checkpoint(
    root: Folder,
    to: Folder,
    tokenizer: Folder | None = None,
    dtype: Dtype = "float32",
    heartbeat: Heartbeat = no_heartbeat,
    base: Folder | None = None,
) -> CheckpointMetadata:
    """Export the latest complete checkpoint in `root`, or `root` itself; return its metadata.

    Without `tokenizer`, the tokenizer that was saved with the weights is copied. Adapters are
    merged into `base`, by default the base that they record.
    """
    with open_weights(root, base) as opened:
        saved = opened.folder / TOKENIZER
        if tokenizer is None and saved.is_file():
            tokenizer = saved
        export(opened.read, opened.architecture, to, tokenizer, dtype, heartbeat=heartbeat)
    return opened.metadata
