"""Text, JSON lines and source code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from llmtrain_trainer.data.documents import Document, InputFile
from llmtrain_trainer.data.readers.compressed import open_bytes, open_text

PARAGRAPHS = 8192
"""Minimum characters of a document cut from a single file."""

TEXT_FIELDS = ("text", "content")
NAME_FIELDS = ("id", "url")

CODE_LIMIT = 1 << 20
"""Larger files of source code are assumed to be generated and are skipped."""


def read_text(file: InputFile) -> Iterator[Document]:
    """Yield a file as a document. A source that is one file is split into runs of paragraphs."""
    with open_text(file.path) as stream:
        if file.is_whole_source:
            yield from _runs(file.name, stream)
        else:
            yield Document(file.name, stream.read())


def _runs(name: str, stream: IO[str]) -> Iterator[Document]:
    held: list[str] = []
    size = number = 0
    for paragraph in _paragraphs(stream):
        held.append(paragraph)
        size += len(paragraph) + 2
        if size >= PARAGRAPHS:
            yield Document(f"{name}#{number}", "\n\n".join(held))
            held, size, number = [], 0, number + 1
    if held:
        yield Document(f"{name}#{number}", "\n\n".join(held))


def _paragraphs(stream: IO[str]) -> Iterator[str]:
    rest = ""
    while chunk := stream.read(1 << 20):
        *whole, rest = (rest + chunk).split("\n\n")
        yield from whole
    yield rest


def read_jsonl(file: InputFile) -> Iterator[Document]:
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


def read_code(file: InputFile) -> Iterator[Document]:
    """Yield one file of a source tree, unless it is binary or larger than `CODE_LIMIT`."""
    if file.size > CODE_LIMIT:
        return
    with open_bytes(file.path) as stream:
        start = stream.read(8192)
        if b"\0" not in start:
            content = b"".join(chain((start,), stream))
            yield Document(file.name, content.decode("utf-8", errors="replace"))
