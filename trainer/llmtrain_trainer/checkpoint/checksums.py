"""Checksums of everything in a checkpoint: bytes that changed since must never become weights.

torch's own format has a CRC-32 for every member of its archives and does not look at it, nor would
it cover their directories. So each entry of a file has one here, taken while it is written and
compared by whichever rank reads the entry, in any layout; the marker holds them all, and one of
itself and of our own files. They stand beside torch's facts: its own tools read the files as ever.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import IO, Any
from zlib import crc32

from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageWriterTransforms
from torch.distributed.checkpoint.fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llmtrain_trainer.checkpoint.paths import COMPLETE_MARKER, METADATA_FILE, TOKENIZER, Folder


class ChecksumWriter(FileSystemWriter):
    """torch's writer for volumes, with checksums."""

    folder: Folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's entries; each result carries the checksum of what was written."""
        self.transforms = sums = _ChecksumTransforms()
        written = super().write_data(plan, planner)
        for result in written.value():
            result.storage_data.crc32 = sums.of[result.index].crc32
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the marker, last of all."""
        places = {result.index: result.storage_data for part in results for result in part}
        metadata.files = _of_files(self.folder)  # type: ignore[attr-defined]
        metadata.crc32 = _of_marker(metadata, places)  # type: ignore[attr-defined]
        super().finish(metadata, results)


class ChecksumStoreWriter(ChecksumWriter, FsspecWriter):
    """The same for stores."""


def verify_entry(entry: IO[bytes], place: Any) -> IO[bytes]:
    """Return an entry that was read once. Raises UnpicklingError unless it is as it was written."""
    content = entry.read()
    if crc32(content) != place.crc32:
        raise pickle.UnpicklingError(
            f"{place.relative_path}: wrong checksum of {place.length} bytes at {place.offset}"
        )
    return io.BytesIO(content)


def verify_marker(metadata: Metadata) -> None:
    """Raise UnpicklingError unless a marker says what it said when it was written."""
    if getattr(metadata, "crc32", None) != _of_marker(metadata, metadata.storage_data or {}):
        raise pickle.UnpicklingError(f"the checksum of {COMPLETE_MARKER} is wrong")


def verify_files(folder: Folder, metadata: Metadata) -> None:
    """Raise UnpicklingError unless our own files are those that were written."""
    files: Mapping[str, int] = metadata.files  # type: ignore[attr-defined]
    for name, expected in files.items():
        if crc32((folder / name).read_bytes()) != expected:
            raise pickle.UnpicklingError(f"the checksum of {name} is wrong")


class _ChecksumStream(io.RawIOBase):
    """Passes on what is written and sums it up."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.crc32 = stream, 0

    def write(self, content: Any) -> int:
        self.crc32 = crc32(content, self.crc32)
        return self._stream.write(content)

    def close(self) -> None:
        self._stream.close()


class _ChecksumTransforms(_StorageWriterTransforms):
    """torch asks this for the stream of each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[MetadataIndex, _ChecksumStream] = {}

    def transform_save_stream(
        self, write_item: WriteItem, raw_stream: io.IOBase
    ) -> tuple[IO[bytes], list[str]]:
        stream, names = super().transform_save_stream(write_item, raw_stream)
        self.of[write_item.index] = summed = _ChecksumStream(stream)
        return summed, names  # type: ignore[return-value]


def _of_files(folder: Folder) -> dict[str, int]:
    paths = [folder / name for name in (METADATA_FILE, TOKENIZER)]
    return {path.name: crc32(path.read_bytes()) for path in paths if path.is_file()}


def _of_marker(metadata: Metadata, places: Mapping[Any, Any]) -> int:
    """Sum up all that loading goes by. Not the pickled bytes: they hold the sum as well."""
    entries = [
        (index, place.relative_path, place.offset, place.length, getattr(place, "crc32", None))
        for index, place in places.items()
    ]
    files = getattr(metadata, "files", None)
    told = (metadata.state_dict_metadata, metadata.planner_data, entries, files)
    return crc32(repr(told).encode())
