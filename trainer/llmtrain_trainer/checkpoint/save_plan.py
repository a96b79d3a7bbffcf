"""Torch's plans of a save as JSON: what each rank writes, and where it has written it.

torch exchanges them as pickles. These are the same facts as data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from llmtrain_trainer.checkpoint.index import DTYPES, shard_name, size_of, whole_number


def plan_to_wire(plan: SavePlan) -> dict[str, Any]:
    """Return a plan as a JSON value."""
    return {
        "items": [_item_to_wire(item) for item in plan.items],
        "paths": {name: list(path) for name, path in (plan.planner_data or {}).items()},
        "prefix": None if plan.storage_data is None else plan.storage_data.prefix,
    }


def plan_from_wire(wire: dict[str, Any]) -> SavePlan:
    """Return the plan of a JSON value."""
    prefix = wire["prefix"]
    return SavePlan(
        [_item_from_wire(item) for item in wire["items"]],
        storage_data=None if prefix is None else _StoragePrefix(shard_name(prefix)),
        planner_data={name: tuple(path) for name, path in wire["paths"].items()},
    )


def results_to_wire(results: Sequence[WriteResult]) -> list[Any]:
    """Return what a rank has written as a JSON value."""
    found = []
    for result in results:
        place = result.storage_data
        entry = [place.relative_path, place.offset, place.length, place.crc32]
        found.append([*_index_to_wire(result.index), result.size_in_bytes, *entry])
    return found


def results_from_wire(wire: Sequence[Any]) -> list[WriteResult]:
    """Return what a rank has written."""
    results = []
    for name, offset, hint, size, path, *entry in wire:
        start, length, checksum = map(whole_number, entry)
        place = _StorageInfo(shard_name(path), start, length)
        place.crc32 = checksum  # type: ignore[attr-defined]
        results.append(WriteResult(_index_from_wire(name, offset, hint), size, place))
    return results


def _item_to_wire(item: WriteItem) -> list[Any]:
    data = item.tensor_data
    tensor = None
    if data is not None:
        dtype = str(data.properties.dtype).removeprefix("torch.")
        tensor = [list(data.chunk.offsets), list(data.chunk.sizes), dtype, list(data.size)]
    return [*_index_to_wire(item.index), item.type.name, tensor]


def _item_from_wire(wire: Sequence[Any]) -> WriteItem:
    name, offset, hint, kind, tensor = wire
    data = None
    if tensor is not None:
        offsets, sizes, dtype, size = tensor
        chunk = ChunkStorageMetadata(size_of(offsets), size_of(sizes))
        data = TensorWriteData(chunk, TensorProperties(dtype=DTYPES[dtype]), size_of(size))
    index = _index_from_wire(name, offset, hint)
    return WriteItem(index, WriteItemType[kind], tensor_data=data)


def _index_to_wire(index: MetadataIndex) -> list[Any]:
    return [index.fqn, None if index.offset is None else list(index.offset), index.index]


def _index_from_wire(name: Any, offset: Any, hint: Any) -> MetadataIndex:
    offsets: torch.Size | None = None if offset is None else size_of(offset)
    return MetadataIndex(str(name), offsets, None if hint is None else whole_number(hint))
