"""The base checkpoint of fine-tuning: find it, and check that it matches the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtrain_trainer.checkpoint.metadata import read_metadata, require_same_model
from llmtrain_trainer.checkpoint.paths import (
    TOKENIZER,
    Folder,
    folder_from_uri,
    newest_checkpoint,
)
from llmtrain_trainer.config import DataConfig
from llmtrain_trainer.errors import InputError

INIT_FROM_FIELD = "spec.model.initFrom"


def base_checkpoint(uri: str, running_torch: str, architecture: dict[str, Any]) -> Folder:
    """Return the folder of a base checkpoint: the named one, or the latest complete one in it.

    Raises InputError if there is none, or if its weights are of another architecture.
    """
    folder = _newest(uri)
    metadata = read_metadata(folder, running_torch, INIT_FROM_FIELD)
    if metadata.lora is not None:
        raise InputError(
            "CheckpointMismatch",
            f"{folder} holds adapters only",
            field=INIT_FROM_FIELD,
            remedy="name its folder merged/, which training.lora.merge writes",
        )
    saved, wanted = _weights(metadata.architecture), _weights(architecture)
    require_same_model(folder, saved, wanted, INIT_FROM_FIELD)
    return folder


def base_tokenizer(config: DataConfig) -> Path | None:
    """Return the tokenizer of the base checkpoint; None if there is no base or it is not needed.

    A job that names a tokenizer does not need it.
    """
    if config.init_from is None or config.tokenizer is not None:
        return None
    return checkpoint_tokenizer(config.init_from)


def checkpoint_tokenizer(uri: str) -> Path:
    """Return the tokenizer next to the weights of a base. Raises InputError if there is none."""
    path = Path(str(_newest(uri) / TOKENIZER))
    if not path.is_file():
        raise InputError(
            "InvalidSpec",
            f"{path.parent} has no {TOKENIZER}, and other tokens would mean nothing to it",
            field="spec.data.tokenizer.uri",
            remedy="name the tokenizer that the base was trained with",
        )
    return path


def _newest(uri: str) -> Folder:
    return newest_checkpoint(
        folder_from_uri(uri, INIT_FROM_FIELD),
        INIT_FROM_FIELD,
        remedy="name the checkpoint.uri of the job that trained the base",
    )


def _weights(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return what weights depend on: with rotary positions, everything but the sequence length."""
    if architecture.get("positions", "rotary") != "rotary":
        return architecture
    return {name: value for name, value in architecture.items() if name != "sequenceLength"}
