"""The base checkpoint of fine-tuning: find it, and check that it matches the job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_trainer.checkpoint.metadata import MAX_INDEX, read_metadata, require_same_model
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    TOKENIZER,
    Folder,
    folder_from_uri,
    is_complete,
    newest_checkpoint,
    step_folder,
)
from llmtrain_trainer.config import DataConfig
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import read_file

INIT_FROM_FIELD = "spec.model.initFrom"


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """The base checkpoint of fine-tuning."""

    folder: Folder
    record: dict[str, Any]
    """URI, step and digest, as adapters on this base keep them in `llmtrain.json`."""


def base_checkpoint(
    uri: str,
    running_torch: str,
    architecture: dict[str, Any],
    recorded: dict[str, Any] | None = None,
) -> BaseCheckpoint:
    """Return a base checkpoint: the named one, or the latest complete one in it.

    `recorded` is the base that adapters were trained on: its step is used, even if there is a later
    one. Raises InputError if there is none, if its weights are of another architecture, or if they
    are not the recorded ones.
    """
    folder = _newest(uri) if recorded is None else _recorded(uri, recorded)
    metadata = read_metadata(folder, running_torch, INIT_FROM_FIELD)
    record = {"uri": uri, "step": metadata.step, "digest": checkpoint_digest(folder)}
    if recorded is not None and record["digest"] != recorded.get("digest"):
        raise _other_base(recorded, f"{folder} has other weights")
    if metadata.lora is not None:
        raise InputError(
            "CheckpointMismatch",
            f"{folder} holds adapters only",
            field=INIT_FROM_FIELD,
            remedy="name its folder merged/, which training.lora.merge writes",
        )
    saved, wanted = _weights(metadata.architecture), _weights(architecture)
    require_same_model(folder, saved, wanted, INIT_FROM_FIELD)
    return BaseCheckpoint(folder, record)


def checkpoint_digest(folder: Folder) -> str:
    """Return a hash of a complete checkpoint: of its index, which has all checksums."""
    index = folder / INDEX_FILE
    path = index if index.is_file() else folder / COMPLETE_MARKER  # of releases without an index
    return hashlib.sha256(read_file(path, MAX_INDEX)).hexdigest()[:32]


def _recorded(uri: str, recorded: dict[str, Any]) -> Folder:
    """Return the checkpoint at `uri` that adapters were trained on, by its step."""
    root = folder_from_uri(uri, INIT_FROM_FIELD)
    folder = root if is_complete(root) else step_folder(root, int(recorded["step"]))
    if not is_complete(folder):
        raise _other_base(recorded, f"{folder} is not a complete checkpoint")
    return folder


def _other_base(recorded: dict[str, Any], problem: str) -> InputError:
    step, uri = recorded.get("step"), str(recorded.get("uri"))[:200]
    return InputError(
        "CheckpointMismatch",
        f"the adapters were trained on step {step} of {uri}, and {problem}",
        field=INIT_FROM_FIELD,
        remedy="name that checkpoint or a copy of it, or start again in another checkpoint.uri",
    )


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
