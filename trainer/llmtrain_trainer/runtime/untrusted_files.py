"""Read files that a stranger may have written: bounded, and only what is a file."""

from __future__ import annotations

import stat
from pathlib import Path

from pydantic import ValidationError
from upath import UPath

Folder = Path | UPath
"""A path in a file system, or in a store that `fsspec` supports."""


class DamagedFileError(Exception):
    """The content of a file is not what belongs there. The message names the file."""


def read_file(path: Folder, limit: int) -> bytes:
    """Return the content of a file. Raises DamagedFileError if it is longer than `limit`.

    Also raised for what is no file: a device has no end, and a pipe may wait forever.
    """
    facts = path.stat()
    if isinstance(path, Path) and not stat.S_ISREG(facts.st_mode):
        raise DamagedFileError(f"{path.name} is not a file")
    if facts.st_size > limit:
        raise DamagedFileError(f"{path.name} has {facts.st_size} bytes, more than {limit}")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DamagedFileError(f"{path.name} has more than {limit} bytes")
    return bytes(content)


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if a path, with its links resolved, is in a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a loop of links, or a null character
        return False


def first_problem(error: ValidationError) -> str:
    """Return the first error of a value from a file, with its path in the file."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part)[:40] for part in first["loc"])
    return f"{path}: {first['msg']}"[:300] if path else str(first["msg"])[:300]
