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
    format: str = ""
    """Format of a member of an archive. Empty: that of the file."""


class Causes:
    """Counts by kind, each with its first examples."""

    FIRST = 3
    LONGEST = 300
    """Characters of an example."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one more of a kind."""
        self.counts[kind] += 1
        first = self.first.setdefault(kind, [])
        if len(first) < self.FIRST:
            first.append(_whole_text(example)[: self.LONGEST])

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the examples, ordered by kind."""
        return {
            kind: {"count": self.counts[kind], "first": self.first[kind]}
            for kind in sorted(self.counts)
        }

    def add_json(self, other: dict[str, Any]) -> None:
        """Add counts from `to_json`, whose examples come after those here."""
        for kind, facts in other.items():
            self.counts[kind] += facts["count"]
            first = self.first.setdefault(kind, [])
            first += facts["first"][: self.FIRST - len(first)]

    def __str__(self) -> str:
        """Return all kinds in a line, the most frequent first."""
        return "; ".join(
            f"{count} {kind} ({', '.join(self.first[kind])})"
            for kind, count in self.counts.most_common()
        )


def _whole_text(text: str) -> str:
    """Return text without halves of surrogate pairs, so that it can be written."""
    return text.encode("utf-8", "replace").decode()


@dataclass(slots=True)
class ReadReport:
    """What a reader did beside yielding documents."""

    boundaries: Counter[str] = field(default_factory=Counter)
    """Files of text by what ends a document in them."""

    formats: Counter[str] = field(default_factory=Counter)
    """Files by the format in which they were read."""
    charsets: Counter[str] = field(default_factory=Counter)
    """Files and pages by their character set."""
    languages: Counter[str] = field(default_factory=Counter)
    """Documents by language, before the filter. Empty if nothing depends on the language."""
    skipped: Causes = field(default_factory=Causes)
    """Files, and records of other formats than text, that were not read, by what they are."""

    dropped: Causes = field(default_factory=Causes)
    """Rows that cannot be used, by why."""
    undecoded: Causes = field(default_factory=Causes)
    """Documents of the output with U+FFFD, the character for what cannot be decoded."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        causes = {name: getattr(self, name).to_json() for name in _CAUSES}
        return {**counts, **causes}

    def add_json(self, other: dict[str, Any]) -> None:
        """Add another report, in the order of the files."""
        for name in _COUNTERS:
            getattr(self, name).update(other[name])
        for name in _CAUSES:
            getattr(self, name).add_json(other.get(name, {}))  # of an earlier release


_COUNTERS = ("boundaries", "formats", "charsets", "languages")
_CAUSES = ("skipped", "dropped", "undecoded")


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
    origin: str = ""
    """Path for messages, of a member of an archive."""

    def unreadable(self, problem: str) -> InputError:
        """Return the error for a file whose content does not match its format."""
        return InputError(
            "CorpusUnreadable",
            f"source {self.source.name!r}: {self.origin or self.path}: {problem}",
            field=self.source.field,
            remedy=f"repair or remove the file, or set the source's format (now {self.format})",
        )
