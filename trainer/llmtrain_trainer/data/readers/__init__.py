"""Readers: from one file of a known format to documents.

A reader is a function from an `InputFile` to an iterator of `Document`s, in the order of the file,
holding one document at a time. What goes wrong inside becomes an InputError that names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from llmtrain_trainer.data.documents import Document, InputFile
from llmtrain_trainer.errors import InputError

Reader = Callable[[InputFile], Iterator[Document]]

_MODULES = {
    "text": "plain",
    "jsonl": "plain",
    "code": "plain",
    "parquet": "columns",
    "warc": "web",
    "mediawiki": "wiki",
    "stackexchange": "stackexchange",
    "latex": "latex",
    "chat": "chat",
}
"""Format to module; loaded when asked for, since the libraries behind some take a while."""

FORMATS = tuple(_MODULES)


def read(file: InputFile) -> Iterator[Document]:
    """Yield a file's documents. Raises InputError (`CorpusUnreadable`) where it is damaged."""
    module = import_module(f"{__name__}.{_MODULES[file.format]}")
    reader: Reader = getattr(module, f"read_{file.format}")
    try:
        yield from reader(file)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # libraries raise what they like; the file must be known
        raise file.unreadable(str(error) or type(error).__name__) from error
