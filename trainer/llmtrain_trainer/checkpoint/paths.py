"""Checkpoint folders on a shared volume or in an object store: `step-<n>`.

A step is complete only with `.metadata`, which torch's distributed checkpoint writes last, under
another name first: a rank killed in the middle leaves a folder that does not count. Our own facts
lie beside it as `llmtrain.json`, written before.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import fsspec
from upath import UPath

from llmtrain_trainer.checkpoint.retry import is_passing, patiently
from llmtrain_trainer.errors import InputError

FIELD, EXPORT_FIELD = "spec.checkpoint.uri", "spec.checkpoint.exportHuggingFace"
FACTS, MARKER, PURGING = "llmtrain.json", ".metadata", ".purging"
TOKENIZER = "tokenizer.json"

Folder = Path | UPath
"""A path on a file system, or in a store that `fsspec` knows."""

_STEP = re.compile(r"step-(\d{1,12})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What has to be known about a checkpoint before it is read."""

    step: int
    """Optimizer steps done; also the position in the data, which follows from it."""
    torch: str
    """Version that wrote it: newer formats cannot be read by older versions."""
    layout: str
    architecture: dict[str, Any]
    data: str
    """Digest of the prepared data."""
    sequences: int
    """Sequences seen."""
    held_out_before: float | None
    """Held-out loss before the very first step: a resumed run cannot measure it again."""
    exact_match_before: float | None = None
    """Share of held-out examples answered to the letter, likewise."""
    lora: dict[str, Any] | None = None
    """Rank, alpha and targets where the checkpoint holds adapters only."""


def folder_of(uri: str, field: str = FIELD) -> Folder:
    """Return the folder that a checkpoint URI names, on a volume or in an object store.

    Raises InputError for a URI that is none, and for stores whose driver is not installed.
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
    # other processes write there as well: what a store's listing said once may be old
    return UPath(uri, use_listings_cache=False)


def require_usable(root: Folder, field: str = FIELD, reason: str = "CheckpointUnreadable") -> None:
    """Raise InputError unless the folder can be read and written."""
    probe = root / f".probe-{uuid4().hex}"
    try:
        make(root)
        probe.write_bytes(b"")
        try:
            list(root.iterdir())
        finally:
            probe.unlink()
    except Exception as error:  # drivers of stores raise what they like
        if is_passing(error):
            raise
        raise _unusable(reason, f"cannot use {root}: {_reason(error)}", field) from error


def complete_steps(root: Folder) -> list[int]:
    """Return the steps of complete checkpoints, rising."""
    return sorted(step for step, folder in _steps(root) if is_complete(folder))


def is_complete(folder: Folder) -> bool:
    """Tell whether all of a checkpoint was written and nobody is deleting it."""
    names = {path.name for path in inside(folder)}
    return MARKER in names and PURGING not in names


def inside(folder: Folder) -> list[Folder]:
    """Return what is in a folder: nothing where there is none, or somebody is deleting it."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def step_folder(root: Folder, step: int) -> Folder:
    """Return the folder of one step."""
    return root / f"step-{step}"


def newest(
    root: Folder,
    running_torch: str,
    architecture: dict[str, Any],
    without: Collection[int] = (),
    inspect: Callable[[Folder], None] = lambda _: None,
) -> Facts | None:
    """Return the facts of the newest complete checkpoint that is not damaged, or None.

    `inspect` raises InputError for a damaged one. Damage is told in the log, and the checkpoint
    before it is taken; where all are damaged, that is raised. So is InputError where the newest was
    written by a newer torch or for another architecture: going on with an older one would silently
    throw work away.
    """
    damage: InputError | None = None
    for step in reversed([step for step in complete_steps(root) if step not in without]):
        folder = step_folder(root, step)
        try:
            facts = patiently(partial(read_facts, folder, running_torch))
            inspect(folder)
        except DamagedError as error:
            log.warning("%s; looking for the checkpoint before it", error.message)
            damage = damage or error
            continue
        require_same_model(folder, facts.architecture, architecture)
        return facts
    if damage is not None:
        raise damage
    return None


def read_facts(folder: Folder, running_torch: str, field: str = FIELD) -> Facts:
    """Return the facts of one checkpoint. Raises InputError where this torch is older than it."""
    path = folder / FACTS
    try:
        facts = Facts(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise damaged(folder, error, field) from error
    except PermissionError as error:
        text = f"cannot read {path}: {error}"
        raise _unusable("CheckpointUnreadable", text, field) from error
    if _version(facts.torch) > _version(running_torch):
        raise InputError(
            "CheckpointUnreadable",
            f"{folder} was written by torch {facts.torch}; this is {running_torch}",
            field=field,
            remedy=f"use an image with torch {facts.torch} or newer",
        )
    return facts


def require_same_model(
    folder: Folder, saved: dict[str, Any], wanted: dict[str, Any], field: str = FIELD
) -> None:
    """Raise InputError (`CheckpointMismatch`) that says in what two architectures differ."""
    names = sorted(saved.keys() | wanted.keys())
    found = [name for name in names if saved.get(name) != wanted.get(name)]
    if found:
        listed = ", ".join(
            f"{name} is {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            for name in found
        )
        raise InputError(
            "CheckpointMismatch",
            f"{folder} holds a model of another architecture: {listed}",
            field=field,
            remedy="use another folder, or the architecture it was saved with",
        )


def write_facts(root: Folder, facts: Facts, tokenizer: Path | None = None) -> Folder:
    """Make an empty folder for a step, with its facts; whatever was there before was incomplete.

    A network file system may keep names of files that a lost pod had open, so the folder may
    survive; then it is used as it is, but never with a marker from before.
    """
    folder = step_folder(root, facts.step)
    remove(folder)
    make(folder)
    (folder / PURGING).unlink(missing_ok=True)
    (folder / FACTS).write_text(json.dumps(asdict(facts)))
    if tokenizer is not None:
        (folder / TOKENIZER).write_bytes(tokenizer.read_bytes())
    return folder


def make(folder: Folder) -> None:
    """Make a folder where it has to be made: object stores have none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove(folder: Folder) -> None:
    """Delete a checkpoint, its marker first: a half-deleted one must not look complete."""
    (folder / MARKER).unlink(missing_ok=True)
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)


def steps(root: Folder) -> list[int]:
    """Return the steps of all checkpoints, whole or not, rising."""
    return sorted(step for step, _ in _steps(root))


class DamagedError(InputError):
    """A checkpoint whose files are not what was written."""


def damaged(folder: Folder, error: BaseException, field: str = FIELD) -> DamagedError:
    """Return the error for a checkpoint whose files are not what was written."""
    return DamagedError(
        "CheckpointUnreadable",
        f"{folder} is damaged: {error!r}",
        field=field,
        remedy="move this folder aside to go on from the checkpoint before it",
    )


def _steps(root: Folder) -> list[tuple[int, Folder]]:
    found: list[tuple[int, Folder]] = []
    for path in inside(root):
        match = _STEP.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    known = isinstance(number, int) and number in errno.errorcode
    return str(error.strerror) if known and isinstance(error, OSError) else f"{error}"


def _unusable(reason: str, message: str, field: str) -> InputError:
    return InputError(
        reason,
        message,
        field=field,
        remedy="mount a volume there that the pod may read and write, or correct the URI",
    )
