"""The index of a checkpoint, `index.jsonl`: where each part of each tensor is, and its checksum.

torch keeps the same facts in `.metadata`, which is a pickle: reading one can run any code. So this
trainer reads checkpoints through the index and writes `.metadata` only as the mark of a complete
checkpoint and for torch's own tools. The first line of the index has its format and the checksum of
the second line, which has the facts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from llmtrain_trainer.checkpoint.corruption import ChecksumError, newer_release
from llmtrain_trainer.checkpoint.paths import INDEX_FILE, Folder
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file

FORMAT = 1

MAX_BYTES = 4 << 30

MAX_DIMENSIONS = 16

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
"""Types of tensors in a checkpoint, by name."""


def write_index(
    folder: Folder,
    metadata: Metadata,
    places: Mapping[MetadataIndex, Any],
    files: Mapping[str, int],
) -> None:
    """Write the index. `places` are torch's entries with a checksum, `files` those of our files."""
    facts = json.dumps(_to_wire(metadata, places, files), separators=(",", ":")).encode()
    head = json.dumps({"format": FORMAT, "crc32": crc32(facts)}).encode()
    with (folder / INDEX_FILE).open("wb") as file:
        file.write(head + b"\n" + facts)
        if isinstance(folder, Path):
            file.flush()
            os.fsync(file.fileno())


def read_index(folder: Folder) -> Metadata:
    """Read the index as torch's metadata. Raises DamagedFileError if it is not what was written.

    Raises FileNotFoundError if there is none, and InputError if a newer release wrote it.
    """
    head, _, facts = read_file(folder / INDEX_FILE, MAX_BYTES).partition(b"\n")
    try:
        stated = json.loads(head)
        form = stated["format"]
        if type(form) is int and form > FORMAT:
            raise newer_release(folder, f"{INDEX_FILE} has format {form}, not {FORMAT}")
        if form != FORMAT:
            raise ValueError(f"format {str(form)[:40]}, and this release reads {FORMAT}")
        if stated["crc32"] != crc32(facts):
            raise ChecksumError(f"{INDEX_FILE}: the checksum is wrong")
        return _from_wire(json.loads(facts))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedFileError(f"{INDEX_FILE}: {error!r}") from error


def _to_wire(
    metadata: Metadata, places: Mapping[MetadataIndex, Any], files: Mapping[str, int]
) -> dict[str, Any]:
    shards: dict[str, int] = {}

    def entry(index: MetadataIndex) -> list[int]:
        place = places[index]
        number = shards.setdefault(place.relative_path, len(shards))
        return [number, place.offset, place.length, place.crc32]

    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            chunks = [
                [list(part.offsets), list(part.sizes), *entry(MetadataIndex(name, part.offsets))]
                for part in stored.chunks
            ]
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "size": list(stored.size), "chunks": chunks}
        else:
            values[name] = entry(MetadataIndex(name))
    return {"shards": list(shards), "tensors": tensors, "values": values, "files": dict(files)}


def _from_wire(facts: dict[str, Any]) -> Metadata:
    shards = [shard_name(name) for name in facts["shards"]]
    stored: dict[str, Any] = {}
    places: dict[MetadataIndex, Any] = {}
    for name, tensor in facts["tensors"].items():
        dtype, size = DTYPES[tensor["dtype"]], size_of(tensor["size"])
        chunks = []
        for number, (offsets, sizes, *entry) in enumerate(tensor["chunks"]):
            chunk = ChunkStorageMetadata(size_of(offsets), size_of(sizes))
            places[MetadataIndex(name, chunk.offsets, number)] = place = _place(shards, entry)
            require_long_enough(name, dtype, chunk, place.length)
            chunks.append(chunk)
        stored[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
        require_whole(name, stored[name])
    for name, entry in facts["values"].items():
        stored[name] = BytesStorageMetadata()
        places[MetadataIndex(name)] = _place(shards, entry)
    metadata = Metadata(stored, storage_data=places)
    metadata.files = {  # type: ignore[attr-defined]
        shard_name(name): whole_number(checksum) for name, checksum in facts["files"].items()
    }
    return metadata


def _place(shards: list[str], entry: list[Any]) -> _StorageInfo:
    number, offset, length, checksum = map(whole_number, entry)
    place = _StorageInfo(shards[number], offset, length)
    place.crc32 = checksum  # type: ignore[attr-defined]
    return place


def shard_name(value: Any) -> str:
    """Return the name of a file in the folder. Raises ValueError for a path that leads outside."""
    if type(value) is not str or PurePosixPath(value).name != value or "\0" in value:
        raise ValueError(f"{str(value)[:80]!r} is not the name of a file in this folder")
    return value


def whole_number(value: Any) -> int:
    """Return a number that is a size or a position. Raises ValueError otherwise."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a number is not a size or a position")
    return value


def size_of(value: Any) -> torch.Size:
    """Return the size of a tensor. Raises ValueError if it is not a sequence of few numbers."""
    if len(value) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(value)} dimensions")
    return torch.Size([whole_number(each) for each in value])


def require_long_enough(
    name: str, dtype: torch.dtype, chunk: ChunkStorageMetadata, length: int
) -> None:
    """Raise ValueError if a part of a tensor is larger than its entry in the file.

    With `require_whole`, so a reader never allocates more memory than the files have bytes.
    """
    if prod(chunk.sizes) * dtype.itemsize > length:
        raise ValueError(f"a part of {name[:80]!r} is larger than its {length} bytes")


def require_whole(name: str, tensor: TensorStorageMetadata) -> None:
    """Raise ValueError if the parts of a tensor are outside it or do not fill it."""
    for part in tensor.chunks:
        ends = [start + count for start, count in zip(part.offsets, part.sizes, strict=True)]
        if any(end > whole for end, whole in zip(ends, tensor.size, strict=True)):
            raise ValueError(f"a part of {name[:80]!r} is outside the tensor")
    if sum(prod(part.sizes) for part in tensor.chunks) != prod(tensor.size):
        raise ValueError(f"the parts of {name[:80]!r} do not fill the tensor")
