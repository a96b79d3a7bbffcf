"""Read `.metadata` of checkpoints that have no index: those of older releases.

The file is a pickle. It is read without calling anything that it names: only the operations that
torch's metadata consist of are known, and names of classes become inert records. Then the records
are checked and become torch's metadata. The work is bounded by the size of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any

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

from llmtrain_trainer.checkpoint.index import (
    DTYPES,
    require_long_enough,
    require_whole,
    shard_name,
    size_of,
    whole_number,
)

MAX_NAME = 1024
"""Longest name of a tensor, and of a part of its path."""

_CLASSES = {
    "torch.distributed.checkpoint.metadata": [
        "Metadata",
        "StorageMeta",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ],
    "torch.distributed.checkpoint.filesystem": ["_StorageInfo"],
    "torch.serialization": ["_get_layout"],
    "torch": ["Size"],
    "pathlib": ["PosixPath"],
    "pathlib._local": ["PosixPath"],
    "builtins": ["getattr"],
}
"""Everything that torch's metadata name, besides types of tensors."""

_CONTIGUOUS = (
    ("_MEM_FORMAT_ENCODING", (0,)),
    ("getattr", ("_MEM_FORMAT_ENCODING", "TORCH_CONTIGUOUS_FORMAT")),
)
"""The memory format of a contiguous tensor. The first releases of Python 3.11, that of Debian 12
among them, pickle a member of an enumeration by its name instead of its value."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"})


class _Name(str):
    """The name of a class or function, which is never looked up."""


class _Pairs(list[tuple[Any, Any]]):
    """The items of a dictionary. Keys are not hashed: a hostile key takes forever."""


class _Record:
    """What would be an object: the name of its class, its arguments and its state."""

    def __init__(self, name: Any, arguments: Any) -> None:
        if not isinstance(name, _Name):
            raise ValueError("a value is called")
        self.name, self.arguments, self.state = name, arguments, None


def parse_metadata(content: bytes) -> Metadata:
    """Return torch's metadata of a pickle. Raises an error of any kind if they are nothing else."""
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(content):
        machine.run(operation.name, argument)
    (root,) = machine.stack
    return _Converter(len(content)).metadata(root)


class _Machine:
    """Runs the operations of a pickle on inert values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []

    def run(self, name: str, argument: Any) -> None:
        """Run one operation. Raises ValueError if metadata do not need it."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self._memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(len(stack) - int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self._pop(self._marks.pop())))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(_Pairs())
            case "APPEND" | "APPENDS":
                items = self._pop(len(stack) - 1 if name == "APPEND" else self._marks.pop())
                _require(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
                _require(stack[-1], _Pairs).extend(zip(items[::2], items[1::2], strict=True))
            case "STACK_GLOBAL":
                stack.append(_look_up(*self._pop(len(stack) - 2)))
            case "NEWOBJ" | "REDUCE":
                stack.append(_Record(*self._pop(len(stack) - 2)))
            case "BUILD":
                (state,) = self._pop(len(stack) - 1)
                _require(stack[-1], _Record).state = state
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _VALUES:
                stack.append(argument)
            case _:
                raise ValueError(f"the operation {name} is not one of metadata")

    def _pop(self, start: int) -> list[Any]:
        if not 0 <= start <= len(self.stack):
            raise ValueError("an operation has no operand")
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _look_up(module: Any, name: Any) -> Any:
    module, name = str(module)[:100], str(name)[:100]
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if name not in _CLASSES.get(module, ()):
        raise ValueError(f"it names {module}.{name}, which is not part of metadata")
    return _Name(name)


class _Converter:
    """Turns records into torch's metadata. Everything is checked, to a fixed depth."""

    def __init__(self, size: int) -> None:
        self._left = size  # each value takes a byte at least, so more of them are repetitions

    def metadata(self, root: Any) -> Metadata:
        """Return the metadata of the outermost record."""
        fields = self._fields(root, "Metadata")
        places: dict[MetadataIndex, Any] = {}
        for key, value in self._items(fields["storage_data"]):
            places[self._index(key)] = self._place(value)
        stored = {
            self._text(name): self._stored(value)
            for name, value in self._items(fields["state_dict_metadata"])
        }
        for name, value in stored.items():
            if isinstance(value, TensorStorageMetadata):
                require_whole(name, value)
                for part in value.chunks:
                    length = places[MetadataIndex(name, part.offsets)].length
                    require_long_enough(name, value.properties.dtype, part, length)
        paths = {
            self._text(name): tuple(map(self._step, self._tuple(path)))
            for name, path in self._items(fields["planner_data"])
        }
        metadata = Metadata(stored, paths, places)
        metadata.crc32 = whole_number(fields.get("crc32"))  # type: ignore[attr-defined]
        metadata.files = {  # type: ignore[attr-defined]
            shard_name(name): whole_number(checksum)
            for name, checksum in self._items(fields["files"])
        }
        return metadata

    def _stored(self, value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
        if _require(value, _Record).name == "BytesStorageMetadata":
            return BytesStorageMetadata()
        fields = self._fields(value, "TensorStorageMetadata")
        chunks = []
        for part in _require(fields["chunks"], list):
            ends = self._fields(part, "ChunkStorageMetadata")
            chunks.append(
                ChunkStorageMetadata(self._size(ends["offsets"]), self._size(ends["sizes"]))
            )
        return TensorStorageMetadata(
            self._properties(fields["properties"]), self._size(fields["size"]), chunks
        )

    def _properties(self, value: Any) -> TensorProperties:
        record = _named(value, "TensorProperties")
        dtype, layout, gradient, order, pinned, *strides = self._tuple(record.state)
        if _named(layout, "_get_layout").arguments != ("torch.strided",):
            raise ValueError("a tensor is not dense")
        memory_format = _require(order, _Record)
        if (memory_format.name, memory_format.arguments) not in _CONTIGUOUS:
            raise ValueError("a tensor is not contiguous")
        return TensorProperties(
            _require(dtype, torch.dtype),
            requires_grad=_require(gradient, bool),
            pin_memory=_require(pinned, bool),
            strides=None if strides in ([], [None]) else tuple(size_of(self._tuple(*strides))),
        )

    def _index(self, value: Any) -> MetadataIndex:
        fields = self._fields(value, "MetadataIndex")
        offset, hint = fields.get("offset"), fields.get("index")
        return MetadataIndex(
            self._text(fields["fqn"]),
            None if offset is None else self._size(offset),
            None if hint is None else whole_number(hint),
        )

    def _place(self, value: Any) -> _StorageInfo:
        fields = self._fields(value, "_StorageInfo")
        if "transform_descriptors" in fields:
            raise ValueError("a shard is compressed")
        name = shard_name(fields["relative_path"])
        place = _StorageInfo(name, whole_number(fields["offset"]), whole_number(fields["length"]))
        place.crc32 = whole_number(fields.get("crc32"))  # type: ignore[attr-defined]
        return place

    def _size(self, value: Any) -> torch.Size:
        (sizes,) = self._tuple(_named(value, "Size").arguments)
        return size_of(self._tuple(sizes))

    def _fields(self, value: Any, name: str) -> dict[str, Any]:
        state = _named(value, name).state
        return {self._text(key): each for key, each in self._items(state)}

    def _items(self, value: Any) -> Iterator[tuple[Any, Any]]:
        for key, each in _require(value, _Pairs):
            self._count()
            yield key, each

    def _tuple(self, value: Any) -> tuple[Any, ...]:
        for _ in _require(value, tuple):
            self._count()
        return tuple(value)

    def _step(self, value: Any) -> str | int:
        return whole_number(value) if type(value) is int else self._text(value)

    def _text(self, value: Any) -> str:
        if len(_require(value, str)) > MAX_NAME:
            raise ValueError(f"a name has {len(value)} characters")
        return str(value)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it repeats its parts without end")


def _named(value: Any, name: str) -> _Record:
    record: _Record = _require(value, _Record)
    if record.name != name:
        raise ValueError(f"{record.name} in the place of {name}")
    return record


def _require(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in the place of {kind.__name__}")
    return value
