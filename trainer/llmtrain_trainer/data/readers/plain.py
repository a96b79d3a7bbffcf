"""Text, HTML and source code."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.boundaries import (
    SAMPLE,
    SEPARATOR,
    detect_boundary,
    split_documents,
)
from llmtrain_trainer.data.readers.charsets import decode_page, decode_start, open_text
from llmtrain_trainer.data.readers.compressed import open_bytes
from llmtrain_trainer.data.readers.html import html_text

LONE_FILE = 8 << 20
"""A larger file of text, in bytes on disk, is divided like the only file of a source."""

HEAD = 8192
"""Bytes at the start of source code that are checked for binary content."""

CODE_LIMIT = 1 << 20
"""Larger files of source code are assumed to be generated and are skipped."""


def read_text(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of a file, divided as its source asks for."""
    boundary = file.source.documents
    with open_text(file.path, file.source.charset) as stream:
        if boundary == "auto":
            alone = file.is_whole_source or file.size > LONE_FILE
            boundary = detect_boundary(stream.read(SAMPLE), alone)
    report.boundaries[boundary] += 1
    with open_text(file.path, file.source.charset, report.charsets) as stream:
        texts = split_documents(stream, boundary, file.source.separator or SEPARATOR)
        number = 0
        for number, text in enumerate(texts, 1):
            yield Document(file.name if boundary == "file" else f"{file.name}#{number - 1}", text)
        if not number:
            yield Document(file.name, "")  # it is counted as empty


def read_code(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one file of a source tree, unless it is binary or larger than `CODE_LIMIT`."""
    if file.size > CODE_LIMIT:
        report.skipped.add("code over 1 MiB", file.name)
        return
    with open_bytes(file.path) as stream:
        is_text = decode_start(stream.read(HEAD)) is not None
    if not is_text:
        report.skipped.add("binary", file.name)
        return
    with open_text(file.path, file.source.charset, report.charsets) as text:
        yield Document(file.name, text.read())


def read_html(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the visible text of a page."""
    with open_bytes(file.path) as stream:
        page, charset = decode_page(stream.read())
    report.charsets[charset] += 1
    yield Document(file.name, html_text(page))
