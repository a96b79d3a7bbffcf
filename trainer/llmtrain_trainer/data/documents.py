"""The input and the output of a reader."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain_trainer.config import Source
from llmtrain_trainer.errors import InputError


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text and its origin: the source, the file in it, and the position in the file."""

    name: str
    text: str


@dataclass(slots=True)
class ReadReport:
    """What a reader did beside yielding documents."""

    boundaries: Counter[str] = field(default_factory=Counter)
    """Files of text by what ends a document in them."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"boundaries": dict(self.boundaries)}

    def add_json(self, other: dict[str, Any]) -> None:
        """Add another report, in the order of the files."""
        self.boundaries.update(other["boundaries"])


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source."""

    source: Source
    path: Path
    name: str
    """Source and path inside it. Equal on every machine."""
    format: str
    size: int
    """Bytes on disk."""
    modified: int
    """Nanoseconds since the epoch."""
    is_whole_source: bool
    """The source consists of this one file."""

    def unreadable(self, problem: str) -> InputError:
        """Return the error for a file whose content does not match its format."""
        return InputError(
            "CorpusUnreadable",
            f"source {self.source.name!r}: {self.path}: {problem}",
            field=self.source.field,
            remedy=f"repair or remove the file, or set the source's format (now {self.format})",
        )
