"""Open files, compressed or not. The content decides, not the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, cast

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}


def without_compression(name: str) -> str:
    """Return a file name without the suffix of its compression."""
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


def compression_of(path: Path) -> str | None:
    """Return the suffix of the compression that a file has, whatever its name; None if none."""
    with path.open("rb") as file:
        start = file.read(6)
    return next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed. Concatenated streams are read as one."""
    match compression_of(path):
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return cast(IO[bytes], bz2.open(path))
        case ".xz":
            return cast(IO[bytes], lzma.open(path))
        case ".zst":
            from pyarrow import input_stream

            return io.BufferedReader(input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")
