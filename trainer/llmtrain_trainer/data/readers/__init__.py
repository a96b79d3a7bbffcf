"""Readers: from a file of a known format to documents.

A reader is a function from an `InputFile` to an iterator of `Document`s, in file order, with one
document in memory at a time. It notes in a `ReadReport` what it chose and left out. Errors inside
become an InputError that names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.errors import InputError

Reader = Callable[[InputFile, ReadReport], Iterator[Document]]

_MODULES = {
    "text": "plain",
    "html": "plain",
    "code": "plain",
    "jsonl": "records",
    "csv": "records",
    "parquet": "records",
    "archive": "archive",
    "warc": "warc",
    "mediawiki": "mediawiki",
    "stackexchange": "stackexchange",
    "latex": "latex",
    "chat": "chat",
}
"""Format -> module. Modules are imported on first use, because some libraries take long to
import."""


def read(file: InputFile, report: ReadReport | None = None) -> Iterator[Document]:
    """Yield the documents of a file. Raises InputError (`CorpusUnreadable`) if it is corrupt."""
    is_chat = file.source.format == "chat" and file.format != "archive"
    form = "chat" if is_chat else file.format
    module = import_module(f"{__name__}.{_MODULES[form]}")
    reader: Reader = getattr(module, f"read_{form}")
    try:
        yield from reader(file, ReadReport() if report is None else report)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # libraries raise any kind of error; the message must name the file
        raise file.unreadable(str(error) or type(error).__name__) from error
