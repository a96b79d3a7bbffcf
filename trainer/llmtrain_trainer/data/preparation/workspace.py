"""The folder of a preparation. A file exists under its final name only when it is complete."""

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
    """The locations of a plan's intermediate files and of its result."""

    plan: PreparationPlan
    folder: Path

    @property
    def manifest(self) -> Path:
        """The last file to be written. If it exists, the folder is complete."""
        return self.folder / MANIFEST

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, next to the shards."""
        return self.folder / TOKENIZER

    @property
    def scratch(self) -> Path:
        """Intermediate files, deleted at the end."""
        return self.folder / f".work-{self.plan.key}"

    def file(self, stage: str, number: int, suffix: str) -> Path:
        """Return the path of an intermediate file of a unit."""
        return self.scratch / stage / f"{number:06d}{suffix}"

    def shards(self, source: int) -> Path:
        """Return the folder of a source's shards."""
        return self.folder / self.plan.sources[source].name

    @contextmanager
    def draft(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path. It is renamed to `path` if the block succeeds.

        Temporary names are unique per process. A second process with the same task, for example
        because the first seems lost, writes the same bytes and does no harm.
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
        """Write a value atomically."""
        with self.draft(path) as draft:
            draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a value that `write_json` wrote."""
    return json.loads(path.read_text())
