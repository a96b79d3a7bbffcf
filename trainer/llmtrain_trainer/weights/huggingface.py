"""Hugging Face folders: `config.json`, the tokenizer, and weights in safetensors.

Written a shard at a time, `config.json` last: a folder without it is not complete.
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
from tokenizers import Tokenizer
from torch import Tensor

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.checkpoint.paths import TOKENIZER, Folder, make_dir
from llmtrain_trainer.data.tokenizer import end_token
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.weights.families import Piece, architecture_of, config_of, pieces
from llmtrain_trainer.weights.reading import ReadWeights, weight_shapes

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARD_BYTES = 4 << 30
"""Of one file of weights: what writing one needs of memory, twice."""

PART_BYTES = 64 << 20
"""Of a file, between two signs of life."""

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
    """Write a model that `transformers` and its like load. Raises InputError for other shapes.

    `heartbeat` is called for every tensor that was read and every part of a file that was written.
    """
    end = None if tokenizer is None else end_token(Tokenizer.from_str(tokenizer.read_text()))
    config = config_of(architecture, dtype, end)
    shards = _shards(architecture, getattr(torch, dtype).itemsize, shard_bytes)
    make_dir(to)
    for old in [path for path in to.iterdir() if _is_ours(path.name)] if to.is_dir() else []:
        old.unlink()
    index: dict[str, str] = {}
    read = _keeping_the_last(read)
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for piece in shard:
            tensors[piece.theirs] = _join(piece, read).to(getattr(torch, dtype))
            heartbeat()
        _write(to / name, save(tensors, {"format": "pt"}), heartbeat)
        index.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        (to / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    if tokenizer is not None:
        _write_tokenizer(tokenizer, to, architecture.sequence_length)
    (to / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def weights_of_huggingface(folder: Path) -> tuple[Architecture, ReadWeights]:
    """Return the architecture of a folder and what reads its weights by the decoder's names.

    Raises InputError where the folder lacks something or the decoder does not compute this model.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        architecture = architecture_of(config)
        files = _files(folder)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise _unreadable(folder, repr(error)) from error
    sizes = weight_shapes(architecture)
    holders: dict[str, list[Piece]] = {}
    for piece in pieces(architecture):
        for name in piece.ours:
            holders.setdefault(name, []).append(piece)
        if _stored_name(piece.theirs, files) is None:
            raise _unreadable(folder, f"no file has {piece.theirs}")

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        opened: dict[Path, Any] = {}
        with ExitStack() as stack:
            for name in names:
                parts = []
                for piece in holders[name]:
                    stored = _stored_name(piece.theirs, files) or ""
                    try:
                        path = files[stored]
                        if path not in opened:
                            opened[path] = stack.enter_context(safe_open(path, framework="pt"))
                        parts.append(_part(piece, name, opened[path].get_tensor(stored), sizes))
                    except (OSError, SafetensorError, ValueError) as error:
                        raise _unreadable(folder, f"{stored}: {error}") from error
                found[name] = parts[0] if piece.expert is None else torch.stack(parts)
        return found

    return architecture, read


def is_huggingface(folder: Folder) -> bool:
    """Tell whether a folder holds an exported model."""
    return (folder / CONFIG).is_file()


def _shards(architecture: Architecture, width: int, limit: int) -> list[list[Piece]]:
    """Deal the tensors out to files of at most `limit` bytes, in order."""
    sizes = weight_shapes(architecture)
    shards: list[list[Piece]] = [[]]
    used = 0
    for piece in pieces(architecture):
        size = sum(_shape(piece, name, sizes).numel() for name in piece.ours) * width
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(piece)
        used += size
    return shards


def _write(path: Folder, content: bytes, heartbeat: Heartbeat) -> None:
    """Write a file of some gigabytes: a slow store may take longer for it than a step may."""
    whole = memoryview(content)
    with path.open("wb") as file:
        for start in range(0, len(whole), PART_BYTES):
            file.write(whole[start : start + PART_BYTES])
            heartbeat()


def _shape(piece: Piece, name: str, sizes: Mapping[str, torch.Size]) -> torch.Size:
    """Return the shape of one of a piece's weights; of stacked experts, of one."""
    return sizes[name] if piece.expert is None else sizes[name][1:]


def _keeping_the_last(read: ReadWeights) -> ReadWeights:
    """Return what reads stacked experts once for all of them."""
    last: tuple[Sequence[str], Mapping[str, Tensor]] = ((), {})

    def again(names: Sequence[str]) -> Mapping[str, Tensor]:
        nonlocal last
        if names != last[0]:
            last = (), {}  # never two of them
            last = names, read(names)
        return last[1]

    return again


def _join(piece: Piece, read: ReadWeights) -> Tensor:
    found = read(piece.ours)
    if piece.expert is not None:
        return found[piece.ours[0]][piece.expert].clone()
    whole = torch.cat([found[name] for name in piece.ours])
    return (whole.t() if piece.turned else whole).contiguous()


def _part(piece: Piece, name: str, stored: Tensor, sizes: Mapping[str, torch.Size]) -> Tensor:
    """Cut one weight out of a stored tensor. Raises ValueError where the shapes do not fit."""
    whole = stored.t() if piece.turned else stored
    rows = [_shape(piece, each, sizes)[0] for each in piece.ours]
    wanted = torch.Size([sum(rows), *_shape(piece, name, sizes)[1:]])
    if whole.shape != wanted:
        raise ValueError(f"has shape {list(whole.shape)}, not {list(wanted)}")
    return torch.split(whole, rows)[piece.ours.index(name)].contiguous()


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of every stored tensor."""
    if (folder / INDEX).is_file():
        named = json.loads((folder / INDEX).read_text())["weight_map"]
        return {tensor: folder / Path(name).name for tensor, name in named.items()}
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path)


def _stored_name(theirs: str, files: Mapping[str, Path]) -> str | None:
    """Return a tensor's name in the files; GPT-2 as it was published lacks the prefix."""
    for name in (theirs, theirs.removeprefix("transformer.")):
        if name in files:
            return name
    return None


def _write_tokenizer(tokenizer: Folder, to: Folder, length: int) -> None:
    (to / TOKENIZER).write_bytes(tokenizer.read_bytes())
    loaded = Tokenizer.from_str(tokenizer.read_text())
    end = loaded.id_to_token(end_token(loaded))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": length,
    }
    (to / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _is_ours(name: str) -> bool:
    return name in (CONFIG, INDEX) or name.endswith(".safetensors")


def _unreadable(folder: Path, problem: str) -> InputError:
    return InputError(
        "ModelUnreadable",
        f"{folder}: {problem}",
        remedy="name a folder with config.json and the model's safetensors, all of them",
    )
