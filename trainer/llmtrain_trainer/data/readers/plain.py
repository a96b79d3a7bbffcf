"""Text, JSON lines and source code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.boundaries import (
    SAMPLE,
    SEPARATOR,
    detect_boundary,
    split_documents,
)
from llmtrain_trainer.data.readers.compressed import open_bytes, open_text

LONE_FILE = 8 << 20
"""A larger file of text, in bytes on disk, is divided like the only file of a source."""

TEXT_FIELDS = ("text", "content")
NAME_FIELDS = ("id", "url")

CODE_LIMIT = 1 << 20
"""Larger files of source code are assumed to be generated and are skipped."""


def read_text(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of a file, divided as its source asks for."""
    boundary = file.source.documents
    with open_text(file.path) as stream:
        if boundary == "auto":
            alone = file.is_whole_source or file.size > LONE_FILE
            boundary = detect_boundary(stream.read(SAMPLE), alone)
    report.boundaries[boundary] += 1
    with open_text(file.path) as stream:
        texts = split_documents(stream, boundary, file.source.separator or SEPARATOR)
        number = 0
        for number, text in enumerate(texts, 1):
            yield Document(file.name if boundary == "file" else f"{file.name}#{number - 1}", text)
        if not number:
            yield Document(file.name, "")  # it is counted as empty


def read_jsonl(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one document per line, the `text` or `content` of a JSON object."""
    with open_bytes(file.path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise file.unreadable(f"line {number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise file.unreadable(f"line {number} is not a JSON object")
            text = first_of(record, TEXT_FIELDS)
            if not isinstance(text, str):
                raise file.unreadable(f"line {number} has no string under text or content")
            yield Document(f"{file.name}#{first_of(record, NAME_FIELDS) or number}", text)


def first_of(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first field that a record has."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def read_code(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one file of a source tree, unless it is binary or larger than `CODE_LIMIT`."""
    if file.size > CODE_LIMIT:
        return
    with open_bytes(file.path) as stream:
        start = stream.read(8192)
        if b"\0" not in start:
            content = b"".join(chain((start,), stream))
            yield Document(file.name, content.decode("utf-8", errors="replace"))
