"""Checkpoints of a tiny model: as this release writes them, as older ones did, and hostile ones."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    METADATA_FILE,
    TOKENIZER,
)

SHAPE = Architecture(
    layers=1, hidden_size=32, heads=4, ffn_size=48, vocab_size=300, sequence_length=16
)

SHARD = "__0_0.distcp"


class RunsCommand:
    """A value whose pickle runs a command that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def write_checkpoint(root: Path) -> Path:
    """Write the checkpoint of step 1 of a tiny model; return its folder."""
    import torch

    from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata, create_step_folder
    from llmtrain_trainer.checkpoint.shards import write_state
    from llmtrain_trainer.checkpoint.state import MODEL
    from llmtrain_trainer.data.tokenizer import train_bpe
    from llmtrain_trainer.model.decoder import Decoder

    root.mkdir(parents=True, exist_ok=True)
    tokenizer = root / "source.json"
    train_bpe(["to be or not to be that is the question"] * 9, 300).save(str(tokenizer))
    torch.manual_seed(3)
    weights = {name: each.detach() for name, each in Decoder(SHAPE).named_parameters()}
    metadata = CheckpointMetadata(1, torch.__version__, "dp1", SHAPE.to_wire(), "d", 8, None)
    folder = create_step_folder(root, metadata, tokenizer)
    write_state(folder, {MODEL: weights}, None)
    return folder


def write_as_older_release(folder: Path, state: dict[str, Any]) -> None:
    """Write a state as releases without an index did: torch's files, with checksums in `.metadata`.

    `llmtrain.json` and the tokenizer are in the folder already.
    """
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)
    metadata = pickle.loads((folder / COMPLETE_MARKER).read_bytes())
    entries = []
    for index, place in metadata.storage_data.items():
        content = (folder / place.relative_path).read_bytes()
        place.crc32 = crc32(content[place.offset : place.offset + place.length])
        entries.append((index, place.relative_path, place.offset, place.length, place.crc32))
    metadata.files = {
        name: crc32((folder / name).read_bytes())
        for name in (METADATA_FILE, TOKENIZER)
        if (folder / name).is_file()
    }
    covered = (metadata.state_dict_metadata, metadata.planner_data, entries, metadata.files)
    metadata.crc32 = crc32(repr(covered).encode())
    (folder / COMPLETE_MARKER).write_bytes(pickle.dumps(metadata))


def edit_marker(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the pickle of a checkpoint without an index. `change` may return another root."""
    (folder / INDEX_FILE).unlink(missing_ok=True)
    metadata = pickle.loads((folder / COMPLETE_MARKER).read_bytes())
    changed = change(metadata)
    root = metadata if changed is None else changed
    (folder / COMPLETE_MARKER).write_bytes(pickle.dumps(root))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the facts of an index and correct its checksum, as an attacker would."""
    import json

    _, _, facts = (folder / INDEX_FILE).read_bytes().partition(b"\n")
    wire = json.loads(facts)
    change(wire)
    write_index_lines(folder, json.dumps(wire).encode())


def write_index_lines(folder: Path, facts: bytes) -> None:
    """Write an index of any content with the right checksum."""
    head = b'{"format": 1, "crc32": %d}' % crc32(facts)
    (folder / INDEX_FILE).write_bytes(head + b"\n" + facts)


def replace_entry(folder: Path, value: Any, legacy: bool = False) -> None:
    """Replace the content of every entry by a value that torch saves, with right checksums."""
    import torch

    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    content = stream.getvalue().ljust(1 << 16, b"\0")
    (folder / SHARD).write_bytes(content)
    entry = [0, 0, len(content), crc32(content)]

    def change(wire: dict[str, Any]) -> None:
        for tensor in wire["tensors"].values():
            for chunk in tensor["chunks"]:
                chunk[2:] = entry

    edit_index(folder, change)
