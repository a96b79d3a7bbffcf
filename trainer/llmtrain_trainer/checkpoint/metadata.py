"""The metadata of a checkpoint, `llmtrain.json`, and the choice of the checkpoint to resume."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmtrain_trainer.checkpoint.corruption import (
    ChecksumError,
    CorruptCheckpointError,
    corrupt_checkpoint,
    newer_release,
)
from llmtrain_trainer.checkpoint.paths import (
    INDEX_FILE,
    METADATA_FILE,
    PURGE_MARKER,
    TOKENIZER,
    URI_FIELD,
    Folder,
    complete_steps,
    delete_checkpoint,
    make_dir,
    step_folder,
    unusable,
)
from llmtrain_trainer.checkpoint.retry import retry_transient
from llmtrain_trainer.data.tokenizer_settings import settings_files
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, first_problem, read_file

log = logging.getLogger(__name__)


MAX_BYTES, MAX_INDEX = 1 << 20, 4 << 30
"""Length of `llmtrain.json`, and of the index."""


NOT_OF_THE_MODEL = ("loadBalancingWeight",)
"""Fields of an architecture that only training uses: weights do not depend on them."""


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """What must be known about a checkpoint before it is read. The fields are the JSON keys."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    step: int
    """Optimizer steps done."""
    torch: str
    """Version that wrote it. Older versions cannot read newer formats."""
    layout: str
    architecture: dict[str, Any]
    data: str
    """Digest of the prepared data."""
    sequences: int
    """Sequences seen, which is the position in the data."""
    held_out_before: float | None
    """Held-out loss before the very first step. A resumed run cannot measure it."""
    exact_match_before: float | None = None
    """Fraction of held-out examples answered exactly before the very first step."""
    lora: dict[str, Any] | None = None
    """Rank, alpha and targets if the checkpoint holds adapters only."""
    steps: int | None = None
    """Optimizer steps of the whole run, which the learning rate depends on."""
    base: dict[str, Any] | None = None
    """URI, step and digest of the base of adapters. None in those of older releases."""
    packed: bool | None = None
    """Whether a sequence may hold several fine-tuning examples. None for running text, and in those
    of older releases, which had one example per sequence."""

    def to_wire(self) -> dict[str, Any]:
        """Return the metadata as a JSON value."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> CheckpointMetadata:
        """Return the metadata of a JSON value of this release."""
        return cls(**wire)


_METADATA = TypeAdapter(CheckpointMetadata)


def latest_complete(
    root: Folder,
    running_torch: str,
    architecture: dict[str, Any],
    without: Collection[int] = (),
    inspect: Callable[[Folder], None] = lambda _: None,
) -> CheckpointMetadata | None:
    """Return the metadata of the latest complete checkpoint that is not corrupt, or None.

    `inspect` raises InputError for a corrupt one. Corruption is logged and the checkpoint before it
    is tried. If all are corrupt, the error of the latest is raised. InputError is also raised if
    the latest was written by a newer torch or for another architecture: resuming from an older one
    would silently lose work.
    """
    corruption: InputError | None = None
    for step in reversed([step for step in complete_steps(root) if step not in without]):
        folder = step_folder(root, step)
        try:
            metadata = retry_transient(partial(read_metadata, folder, running_torch))
            inspect(folder)
        except CorruptCheckpointError as error:
            log.warning("%s; trying the checkpoint before it", error.message)
            corruption = corruption or error
            continue
        require_same_model(folder, metadata.architecture, architecture)
        return metadata
    if corruption is not None:
        raise corruption
    return None


def read_metadata(folder: Folder, running_torch: str, field: str = URI_FIELD) -> CheckpointMetadata:
    """Return the metadata of one checkpoint. Raises InputError if a newer torch wrote it."""
    path = folder / METADATA_FILE
    try:
        content = read_file(path, MAX_BYTES)
        metadata = _METADATA.validate_json(content)
    except ValidationError as error:
        raise _not_understood(folder, content, first_problem(error), field) from error
    except (DamagedFileError, FileNotFoundError) as error:
        raise corrupt_checkpoint(folder, error, field) from error
    except PermissionError as error:
        raise unusable("CheckpointUnreadable", f"cannot read {path}: {error}", field) from error
    if _version(metadata.torch) > _version(running_torch):
        raise InputError(
            "CheckpointUnreadable",
            f"{folder} was written by torch {metadata.torch}; this is {running_torch}",
            field=field,
            remedy=f"use an image with torch {metadata.torch} or newer",
        )
    return metadata


def _not_understood(folder: Folder, content: bytes, problem: str, field: str) -> InputError:
    """Return the error for metadata that cannot be parsed: as written, changed, or unknown."""
    problem = f"{METADATA_FILE}: {problem}"
    written = recorded_checksum(folder, METADATA_FILE)
    if written is None:
        return corrupt_checkpoint(folder, DamagedFileError(problem), field)
    if written == crc32(content):
        return newer_release(folder, problem, field)
    return corrupt_checkpoint(folder, ChecksumError(f"{problem}, and its checksum is wrong"), field)


def recorded_checksum(folder: Folder, name: str) -> int | None:
    """Return the checksum of one of our own files in the index; None if the index has none."""
    try:
        _, _, facts = read_file(folder / INDEX_FILE, MAX_INDEX).partition(b"\n")
        checksum = json.loads(facts)["files"][name]
    except (OSError, DamagedFileError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return checksum if type(checksum) is int else None


def require_same_model(
    folder: Folder, saved: dict[str, Any], wanted: dict[str, Any], field: str = URI_FIELD
) -> None:
    """Raise InputError (`CheckpointMismatch`) that lists how two architectures differ."""
    names = sorted(saved.keys() | wanted.keys())
    found = [
        name
        for name in names
        if name not in NOT_OF_THE_MODEL and saved.get(name) != wanted.get(name)
    ]
    if found:
        listed = ", ".join(
            f"{name} is {_shown(saved, name)} there and {_shown(wanted, name)} here"
            for name in found
        )
        raise InputError(
            "CheckpointMismatch",
            f"{folder} holds a model of another architecture: {listed}",
            field=field,
            remedy="use another folder, or the architecture it was saved with",
        )


def create_step_folder(
    root: Folder, metadata: CheckpointMetadata, tokenizer: Path | None = None
) -> Folder:
    """Create an empty folder for a step and write its metadata. Delete an incomplete one.

    The tokenizer is copied with the files that belong to it.

    A network file system may keep names of files that a lost pod had open, so the old folder may
    survive. It is then used as it is, but never with an old marker.
    """
    folder = step_folder(root, metadata.step)
    delete_checkpoint(folder)
    make_dir(folder)
    (folder / PURGE_MARKER).unlink(missing_ok=True)
    (folder / METADATA_FILE).write_text(json.dumps(metadata.to_wire()))
    if tokenizer is not None:
        (folder / TOKENIZER).write_bytes(tokenizer.read_bytes())
        for name, content in settings_files(tokenizer).items():
            (folder / name).write_bytes(content)
    return folder


def _shown(architecture: dict[str, Any], name: str) -> str:
    return str(architecture.get(name, "absent"))[:80]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part[:9]) for part in re.findall(r"\d+", text.split("+")[0])[:3])
