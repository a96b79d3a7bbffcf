"""Where text comes from: `package://PACKAGE/FOLDER` and `file:///PATH`.

A document is one text file. A source that is a single file is cut into runs of paragraphs, so that
whole documents can still be held out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmtrain_trainer.config import Source
from llmtrain_trainer.errors import InputError

PARAGRAPHS = 8192
"""Least characters of a document cut from a single file."""


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text and where it came from."""

    name: str
    text: str


def read_source(source: Source) -> Iterator[Document]:
    """Yield a source's documents in the order of their file names.

    Raises InputError (`CorpusMissing`) with the source's field where there is nothing to read.
    """
    root = _locate(source)
    files = [root] if root.is_file() else sorted(root.rglob("*.txt"))
    if not files:
        raise _missing(source, f"there is no .txt file below {root}")
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise _missing(source, f"cannot read {path}: {error.strerror}") from error
        name = f"{source.name}/{path.name if path == root else path.relative_to(root)}"
        yield from _paragraphs(name, text) if path == root else [Document(name, text)]


def _locate(source: Source) -> Path:
    parts = urlsplit(source.uri)
    path = unquote(parts.path)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = Path(path)
    elif parts.scheme == "package" and parts.netloc:
        root = _package(source, parts.netloc) / path.lstrip("/")
    else:
        raise InputError(
            "InvalidSpec",
            f"{source.uri!r} is not a source this trainer can read",
            field=source.field,
            remedy="use file:///PATH or package://PACKAGE/FOLDER",
        )
    if not root.exists():
        raise _missing(source, f"{root} does not exist")
    return root


def _package(source: Source, name: str) -> Path:
    """Find an installed package's folder without importing (and so running) the package."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise _missing(source, f"the Python package {name!r} is not installed in the image")
    return Path(folders[0])


def _missing(source: Source, problem: str) -> InputError:
    return InputError(
        "CorpusMissing",
        f"source {source.name!r} ({source.uri}): {problem}",
        field=source.field,
        remedy="mount the text into the pod, add its package to the image, or correct the URI",
    )


def _paragraphs(name: str, text: str) -> Iterator[Document]:
    held: list[str] = []
    size = number = 0
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        size += len(paragraph) + 2
        if size >= PARAGRAPHS:
            yield Document(f"{name}#{number}", "\n\n".join(held))
            held, size, number = [], 0, number + 1
    if held:
        yield Document(f"{name}#{number}", "\n\n".join(held))
