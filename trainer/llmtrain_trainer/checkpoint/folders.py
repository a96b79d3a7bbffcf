"""Checkpoint folders on a shared file system: `step-<n>`, complete only with `.metadata`.

torch's distributed checkpoint writes `.metadata` last, so a rank killed in the middle leaves a
folder that does not count. Our own facts lie beside it as `llmtrain.json`, written before.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llmtrain_trainer.errors import InputError

FIELD = "spec.checkpoint.uri"
FACTS, MARKER = "llmtrain.json", ".metadata"

_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR})
"""What a shared file system says when it is not there for a moment."""

_STEP = re.compile(r"step-(\d{1,12})")


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


def folder_of(uri: str) -> Path:
    """Return the folder a checkpoint URI names. Raises InputError for other schemes."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path:
        raise InputError(
            "InvalidSpec", f"{uri!r} is not a checkpoint folder this trainer can use",
            field=FIELD, remedy="use file:///PATH on a volume that all pods share",
        )  # fmt: skip
    return Path(unquote(parts.path))


def require_usable(root: Path) -> None:
    """Raise InputError (`CheckpointUnreadable`) unless the folder can be read and written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".probe-"):
            list(root.iterdir())
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise _unreadable(f"cannot use {root}: {error.strerror}") from error


def complete_steps(root: Path) -> list[int]:
    """Return the steps of complete checkpoints, rising."""
    if not root.is_dir():
        return []
    found = ((_STEP.fullmatch(path.name), path) for path in root.iterdir())
    return sorted(int(match[1]) for match, path in found if match and (path / MARKER).is_file())


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of one step."""
    return root / f"step-{step}"


def newest(root: Path, running_torch: str, architecture: dict[str, Any]) -> Facts | None:
    """Return the facts of the newest complete checkpoint, or None.

    Raises InputError where it was written by a newer torch or for another architecture: going on
    with an older one would silently throw work away.
    """
    steps = complete_steps(root)
    if not steps:
        return None
    path = step_folder(root, steps[-1]) / FACTS
    try:
        facts = Facts(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise damaged(path.parent, error) from error
    except PermissionError as error:
        raise _unreadable(f"cannot read {path}: {error}") from error
    if _version(facts.torch) > _version(running_torch):
        raise InputError(
            "CheckpointUnreadable",
            f"{path.parent} was written by torch {facts.torch}; this is {running_torch}",
            field=FIELD,
            remedy=f"use an image with torch {facts.torch} or newer",
        )
    if facts.architecture != architecture:
        raise InputError(
            "CheckpointMismatch",
            f"{path.parent} holds a model of another architecture",
            field=FIELD,
            remedy="use another folder, or the architecture it was saved with",
        )
    return facts


def write_facts(root: Path, facts: Facts) -> Path:
    """Make an empty folder for a step, with its facts; whatever was there before was incomplete.

    A network file system may keep names of files that a lost pod had open, so the folder may
    survive; then it is used as it is, but never with a marker from before.
    """
    folder = step_folder(root, facts.step)
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).write_text(json.dumps(asdict(facts)))
    return folder


def purge(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and incomplete ones before them."""
    complete = complete_steps(root)
    kept = set(complete[-keep:])
    for path in root.iterdir():
        match = _STEP.fullmatch(path.name)
        if match and complete and int(match[1]) not in kept and int(match[1]) < complete[-1]:
            # without its marker first: a half-deleted checkpoint must not look complete
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def damaged(folder: Path, error: BaseException) -> InputError:
    """Return the error for a checkpoint whose files are not what was written."""
    return InputError(
        "CheckpointUnreadable", f"{folder} is damaged: {error!r}", field=FIELD,
        remedy="move this folder aside to go on from the checkpoint before it",
    )  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _unreadable(message: str) -> InputError:
    return InputError(
        "CheckpointUnreadable", message, field=FIELD,
        remedy="mount a volume there that the pod may read and write, or correct the URI",
    )  # fmt: skip
