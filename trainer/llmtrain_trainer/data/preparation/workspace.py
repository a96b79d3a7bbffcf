"""The folder that a preparation works in: whole files only, each under its final name or absent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_trainer.data.preparation.manifest_plan import PreparationPlan

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a plan's intermediate files and its result are."""

    plan: PreparationPlan
    folder: Path

    @property
    def manifest(self) -> Path:
        """The last file to be written: with it, the folder is complete."""
        return self.folder / MANIFEST

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, beside the shards it made."""
        return self.folder / TOKENIZER

    @property
    def scratch(self) -> Path:
        """Intermediate files, removed at the end."""
        return self.folder / f".work-{self.plan.key}"

    def file(self, stage: str, number: int, suffix: str) -> Path:
        """Return the path of a unit's intermediate file."""
        return self.scratch / stage / f"{number:06d}{suffix}"

    def shards(self, source: int) -> Path:
        """Return the folder of a source's shards."""
        return self.folder / self.plan.sources[source].name

    @contextmanager
    def draft(self, path: Path) -> Iterator[Path]:
        """Give a path to write to; when the block ends well, it becomes `path` at once.

        Drafts have names of their own per process: a second one that does the same work, perhaps
        because the first is thought dead, writes the same bytes and does no harm.
        """
        drafts = self.scratch / "drafts"
        drafts.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{path.parent.name}-{path.name}-{socket.gethostname()}-{os.getpid()}"
        draft = drafts / name
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.rename(path)

    def write_json(self, path: Path, value: Any) -> None:
        """Write a value, whole or not at all."""
        with self.draft(path) as draft:
            draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())
