"""Open files, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, cast

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def without_compression(name: str) -> str:
    """Return a file name without the suffix of its compression."""
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed by its suffix. Concatenated streams are read as one."""
    match path.suffix:
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


def open_text(path: Path) -> IO[str]:
    """Open as UTF-8 with line feeds. Invalid bytes become U+FFFD."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="replace")
