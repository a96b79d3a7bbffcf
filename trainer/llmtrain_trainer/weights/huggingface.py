"""Hugging Face folders: `config.json`, the tokenizer, and weights in safetensors.

Weights are written shard by shard, and `config.json` last: a folder without it is incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.runtime.untrusted_files import read_file
from llmtrain_trainer.weights.export_folder import begin_export
from llmtrain_trainer.weights.exported_tokenizer import special_ids, tokenizer_files
from llmtrain_trainer.weights.families import (
    TensorMapping,
    architecture_of,
    config_of,
    tensor_mappings,
)
from llmtrain_trainer.weights.reading import ReadWeights, weight_shapes
from llmtrain_trainer.weights.stored_tensors import (
    INDEX,
    SINGLE,
    files_of_tensors,
    require_all_used,
    require_plain_weights,
)

MAX_CONFIG = 16 << 20
"""Bytes of the configuration."""

CONFIG = "config.json"
SHARD_BYTES = 4 << 30
"""Size of one weights file. Writing a file needs twice as much memory."""

PART_BYTES = 64 << 20
"""Bytes of a file between two heartbeats."""

Dtype = Literal["float32", "bfloat16", "float16"]


def export(
    read: ReadWeights,
    architecture: Architecture,
    to: Folder,
    tokenizer: Folder | None = None,
    dtype: Dtype = "float32",
    shard_bytes: int = SHARD_BYTES,
    heartbeat: Heartbeat = no_heartbeat,
) -> None:
    """Write a model that `transformers` can load.

    Raises InputError for unsupported shapes, and for a folder with files of another model.
    `heartbeat` is called for every tensor that was read and every part of a file that was written.
    """
    files = {} if tokenizer is None else tokenizer_files(tokenizer, architecture.sequence_length)
    bos, eos = (None, None) if tokenizer is None else special_ids(tokenizer)
    config = config_of(architecture, dtype, bos, eos)
    shards = _shards(architecture, getattr(torch, dtype).itemsize, shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    own = [CONFIG, *names, *([INDEX] if len(shards) > 1 else [])]
    begin_export(to, [*own, *files])
    index: dict[str, str] = {}
    read = _cache_last(read)
    for name, shard in zip(names, shards, strict=True):
        tensors = {}
        for mapping in shard:
            tensors[mapping.hf_name] = _join(mapping, read).to(getattr(torch, dtype))
            heartbeat()
        _write(to / name, save(tensors, {"format": "pt"}), heartbeat)
        index.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        (to / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    for name, content in files.items():
        (to / name).write_bytes(content)
    (to / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def weights_of_huggingface(folder: Path) -> tuple[Architecture, ReadWeights]:
    """Return the architecture of a folder and a function that reads its weights by decoder name.

    Raises InputError if the folder is incomplete or the decoder does not support the model.
    """
    try:
        config = json.loads(read_file(folder / CONFIG, MAX_CONFIG))
        require_plain_weights(config)
        architecture = architecture_of(config)
        files = files_of_tensors(folder)
        holders = _holders(architecture, files)
    except InputError as error:
        message = f"{folder}: {error.message}"
        raise InputError(error.reason, message, field=error.field, remedy=error.remedy) from error
    except ValueError as error:
        raise _unreadable(folder, str(error)[:500]) from error
    except Exception as error:  # nearly any kind: the values may be of any type
        raise _unreadable(folder, repr(error)[:500]) from error
    sizes = weight_shapes(architecture)

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        opened: dict[Path, Any] = {}
        with ExitStack() as stack:
            for name in names:
                parts = []
                for mapping in holders[name]:
                    stored = _stored_name(mapping.hf_name, files) or ""
                    try:
                        path = files[stored]
                        if path not in opened:
                            opened[path] = stack.enter_context(safe_open(path, framework="pt"))
                        parts.append(_part(mapping, name, opened[path].get_tensor(stored), sizes))
                    except (OSError, SafetensorError, ValueError) as error:
                        raise _unreadable(folder, f"{stored}: {error}") from error
                found[name] = parts[0] if mapping.expert is None else torch.stack(parts)
        return found

    return architecture, read


def is_huggingface(folder: Folder) -> bool:
    """Return True if a folder holds an exported model."""
    return (folder / CONFIG).is_file()


def _shards(architecture: Architecture, width: int, limit: int) -> list[list[TensorMapping]]:
    """Distribute the tensors in order over files of at most `limit` bytes."""
    sizes = weight_shapes(architecture)
    shards: list[list[TensorMapping]] = [[]]
    used = 0
    for mapping in tensor_mappings(architecture):
        size = sum(_shape(mapping, name, sizes).numel() for name in mapping.names) * width
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(mapping)
        used += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write(path: Folder, content: bytes, heartbeat: Heartbeat) -> None:
    """Write a file of some gigabytes. On a slow store this may take longer than a step may."""
    whole = memoryview(content)
    with path.open("wb") as file:
        for start in range(0, len(whole), PART_BYTES):
            file.write(whole[start : start + PART_BYTES])
            heartbeat()


def _shape(mapping: TensorMapping, name: str, sizes: Mapping[str, torch.Size]) -> torch.Size:
    """Return the shape of one weight of a tensor; of stacked experts, the shape of one expert."""
    return sizes[name] if mapping.expert is None else sizes[name][1:]


def _cache_last(read: ReadWeights) -> ReadWeights:
    """Cache the last result of `read`, so that stacked experts are read once for all of them."""
    last: tuple[Sequence[str], Mapping[str, Tensor]] = ((), {})

    def again(names: Sequence[str]) -> Mapping[str, Tensor]:
        nonlocal last
        if names != last[0]:
            last = (), {}  # never keep two of them
            last = names, read(names)
        return last[1]

    return again


def _join(mapping: TensorMapping, read: ReadWeights) -> Tensor:
    found = read(mapping.names)
    if mapping.expert is not None:
        return found[mapping.names[0]][mapping.expert].clone()
    whole = torch.cat([found[name] for name in mapping.names])
    return (whole.t() if mapping.transposed else whole).contiguous()


def _part(
    mapping: TensorMapping, name: str, stored: Tensor, sizes: Mapping[str, torch.Size]
) -> Tensor:
    """Return one weight out of a stored tensor. Raises ValueError if the shapes differ."""
    whole = stored.t() if mapping.transposed else stored
    rows = [_shape(mapping, each, sizes)[0] for each in mapping.names]
    wanted = torch.Size([sum(rows), *_shape(mapping, name, sizes)[1:]])
    if whole.shape != wanted:
        raise ValueError(f"has shape {list(whole.shape)}, not {list(wanted)}")
    return torch.split(whole, rows)[mapping.names.index(name)].contiguous()


def _holders(
    architecture: Architecture, files: Mapping[str, Path]
) -> dict[str, list[TensorMapping]]:
    """Return the stored tensors of every weight. Raises if one is missing, or one is not used."""
    holders: dict[str, list[TensorMapping]] = {}
    used: set[str] = set()
    for mapping in tensor_mappings(architecture):
        for name in mapping.names:
            holders.setdefault(name, []).append(mapping)
        stored = _stored_name(mapping.hf_name, files)
        if stored is None:
            raise ValueError(f"no file has {mapping.hf_name}")
        used.add(stored)
    require_all_used(files, used, architecture.tied_embeddings)
    return holders


def _stored_name(theirs: str, files: Mapping[str, Path]) -> str | None:
    """Return a tensor's name in the files. The published GPT-2 has no prefix."""
    for name in (theirs, theirs.removeprefix("transformer.")):
        if name in files:
            return name
    return None


def _unreadable(folder: Path, problem: str) -> InputError:
    return InputError(
        "ModelUnreadable",
        f"{folder}: {problem}",
        remedy="name a folder with config.json and the model's safetensors, all of them",
    )
