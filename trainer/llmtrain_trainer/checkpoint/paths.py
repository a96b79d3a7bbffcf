"""Checkpoint folders on a shared volume or in an object store: `step-<n>`.

A step is complete only with `.metadata`. torch's distributed checkpoint writes this file last, and
under another name first, so a folder of a rank that was killed does not count. Our own metadata are
beside it in `llmtrain.json`, which is written first, and the index of the weights in `index.jsonl`.
"""

from __future__ import annotations

import errno
import re
import shutil
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import fsspec
from upath import UPath

from llmtrain_trainer.checkpoint.retry import is_transient
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import Folder as Folder

URI_FIELD, EXPORT_FIELD = "spec.checkpoint.uri", "spec.checkpoint.exportHuggingFace"
METADATA_FILE, COMPLETE_MARKER, PURGE_MARKER = "llmtrain.json", ".metadata", ".purging"
INDEX_FILE, TOKENIZER = "index.jsonl", "tokenizer.json"

_STEP = re.compile(r"step-(\d{1,12})")


def folder_from_uri(uri: str, field: str = URI_FIELD) -> Folder:
    """Return the folder of a checkpoint URI, on a volume or in an object store.

    Raises InputError if the URI is not valid, or if the driver of the store is not installed.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Path(unquote(parts.path))
    try:
        if parts.scheme in ("", "file") or not parts.netloc:
            raise ValueError("it names no folder")
        fsspec.get_filesystem_class(parts.scheme)
    except (ValueError, ImportError) as error:
        raise InputError(
            "InvalidSpec",
            f"{uri!r} is not a checkpoint folder this trainer can use: {error}",
            field=field,
            remedy="use file:///PATH on a volume that all pods share, or s3://BUCKET/"
            "PATH; other stores need an image with their fsspec driver",
        ) from error
    # other processes write there, too: a cached listing may be outdated
    return UPath(uri, use_listings_cache=False)


def require_writable(
    root: Folder, field: str = URI_FIELD, reason: str = "CheckpointUnreadable"
) -> None:
    """Raise InputError unless the folder can be read and written."""
    probe = root / f".probe-{uuid4().hex}"
    try:
        make_dir(root)
        probe.write_bytes(b"")
        try:
            list(root.iterdir())
        finally:
            probe.unlink()
    except Exception as error:  # store drivers raise any kind of error
        if is_transient(error):
            raise
        raise unusable(reason, f"cannot use {root}: {_reason(error)}", field) from error


def list_dir(folder: Folder) -> list[Folder]:
    """Return the paths in a folder. Return [] if it does not exist or is being deleted."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def step_folder(root: Folder, step: int) -> Folder:
    """Return the folder of one step."""
    return root / f"step-{step}"


def list_steps(root: Folder) -> list[int]:
    """Return the steps of all checkpoints, complete or not, in ascending order."""
    return sorted(step for step, _ in _step_folders(root))


def complete_steps(root: Folder) -> list[int]:
    """Return the steps of complete checkpoints in ascending order."""
    return sorted(step for step, folder in _step_folders(root) if is_complete(folder))


def newest_checkpoint(folder: Folder, field: str, remedy: str) -> Folder:
    """Return a complete checkpoint: `folder` itself, or the latest one in it.

    Raises InputError, with the field and remedy, if there is none.
    """
    if is_complete(folder):
        return folder
    steps = complete_steps(folder)
    if not steps:
        raise InputError(
            "CheckpointUnreadable",
            f"{folder} is not a complete checkpoint and contains none",
            field=field,
            remedy=remedy,
        )
    return step_folder(folder, steps[-1])


def is_complete(folder: Folder) -> bool:
    """Return True if a checkpoint was written completely and is not being deleted."""
    names = {path.name for path in list_dir(folder)}
    return COMPLETE_MARKER in names and PURGE_MARKER not in names


def make_dir(folder: Folder) -> None:
    """Create a folder if it is in a file system. Object stores have no folders."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def delete_checkpoint(folder: Folder) -> None:
    """Delete a checkpoint, its marker first: a half-deleted one must not look complete."""
    (folder / COMPLETE_MARKER).unlink(missing_ok=True)
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)


def unusable(reason: str, message: str, field: str) -> InputError:
    """Return the error for a folder that cannot be read or written."""
    return InputError(
        reason,
        message,
        field=field,
        remedy="mount a volume there that the pod may read and write, or correct the URI",
    )


def _step_folders(root: Folder) -> list[tuple[int, Folder]]:
    found: list[tuple[int, Folder]] = []
    for path in list_dir(root):
        match = _STEP.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return found


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    known = isinstance(number, int) and number in errno.errorcode
    return str(error.strerror) if known and isinstance(error, OSError) else f"{error}"
