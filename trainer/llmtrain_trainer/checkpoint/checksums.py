"""Checksums of everything in a checkpoint: bytes that changed must never become weights.

torch's format has a CRC-32 per member of its archives, but torch does not check it, and it would
not cover the archive directories. So every entry of a file has a checksum here. It is computed
while the entry is written, and checked by whichever rank reads the entry, in any layout. The index
holds all of them, one of itself and one of each of our own files. So does the marker, as additional
attributes of torch's metadata: torch's own tools and older releases can read the files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, Any
from zlib import crc32

from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageWriterTransforms
from torch.distributed.checkpoint.fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llmtrain_trainer.checkpoint.corruption import ChecksumError
from llmtrain_trainer.checkpoint.index import read_index, write_index
from llmtrain_trainer.checkpoint.paths import (
    COMPLETE_MARKER,
    INDEX_FILE,
    METADATA_FILE,
    TOKENIZER,
    Folder,
)
from llmtrain_trainer.checkpoint.pickled_metadata import parse_metadata
from llmtrain_trainer.data.tokenizer_settings import SETTINGS_FILES
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file

MAX_FILE, MAX_MARKER = 1 << 30, 1 << 30
"""Bytes of one of our own files and of a marker."""


class ChecksumWriter(FileSystemWriter):
    """torch's writer for volumes, with checksums."""

    folder: Folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's entries. Each result carries the checksum of the written bytes."""
        self.transforms = sums = _ChecksumTransforms()
        written = super().write_data(plan, planner)
        for result in written.value():
            result.storage_data.crc32 = sums.of[result.index].crc32
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, then the marker, the last file of all."""
        places = {result.index: result.storage_data for part in results for result in part}
        metadata.files = _of_files(self.folder)  # type: ignore[attr-defined]
        write_index(self.folder, metadata, places, metadata.files)  # type: ignore[attr-defined]
        metadata.crc32 = _of_marker(metadata, places)  # type: ignore[attr-defined]
        super().finish(metadata, results)


class ChecksumStoreWriter(ChecksumWriter, FsspecWriter):
    """torch's writer for object stores, with checksums."""


def read_index_or_marker(folder: Folder) -> Metadata:
    """Return where the weights are, from the index or, in old checkpoints, from the marker.

    Raises DamagedFileError if it is not what was written, FileNotFoundError if there is none.
    """
    if (folder / INDEX_FILE).exists():
        return read_index(folder)
    content = read_file(folder / COMPLETE_MARKER, MAX_MARKER)
    try:
        metadata = parse_metadata(content)
        checksum = _of_marker(metadata, metadata.storage_data)
        if metadata.crc32 != checksum:  # type: ignore[attr-defined]
            raise ChecksumError(f"{COMPLETE_MARKER}: the checksum is wrong")
    except ChecksumError:
        raise
    except Exception as error:  # nearly any kind: the bytes may be anything
        raise DamagedFileError(f"{COMPLETE_MARKER}: {error!r}") from error
    return metadata


def verify_entry(content: bytes, place: Any) -> None:
    """Raise ChecksumError if the checksum of an entry is wrong."""
    if crc32(content) != place.crc32:
        raise ChecksumError(
            f"{place.relative_path}: wrong checksum of {place.length} bytes at {place.offset}"
        )


def verify_files(folder: Folder, metadata: Metadata) -> None:
    """Raise ChecksumError if the checksum of one of our own files is wrong."""
    files: Mapping[str, int] = metadata.files  # type: ignore[attr-defined]
    for name, expected in files.items():
        if crc32(read_file(folder / name, MAX_FILE)) != expected:
            raise ChecksumError(f"the checksum of {name} is wrong")


class _ChecksumStream(io.RawIOBase):
    """Forwards what is written and computes its checksum."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.crc32 = stream, 0

    def write(self, content: Any) -> int:
        self.crc32 = crc32(content, self.crc32)
        return self._stream.write(content)

    def close(self) -> None:
        self._stream.close()


class _ChecksumTransforms(_StorageWriterTransforms):
    """torch gets the stream of each entry from this object."""

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
    paths = [folder / name for name in (METADATA_FILE, TOKENIZER, *SETTINGS_FILES)]
    return {path.name: crc32(path.read_bytes()) for path in paths if path.is_file()}


def _of_marker(metadata: Metadata, places: Mapping[Any, Any]) -> int:
    """Return the checksum of everything that loading uses.

    It does not cover the pickled bytes, which contain this checksum.
    """
    entries = [
        (index, place.relative_path, place.offset, place.length, getattr(place, "crc32", None))
        for index, place in places.items()
    ]
    files = getattr(metadata, "files", None)
    content = (metadata.state_dict_metadata, metadata.planner_data, entries, files)
    return crc32(repr(content).encode())
