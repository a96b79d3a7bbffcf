"""Archives, zip and tar: each member is read as a file of the source."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

from llmtrain_trainer.data import readers
from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes
from llmtrain_trainer.data.readers.content import ROWS, classify, is_about, is_zip
from llmtrain_trainer.errors import InputError

LONGEST_ABOUT = 1 << 20
"""Bytes of a member that may describe the rows beside it."""
_ENCRYPTED = 1


def read_archive(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of all members that the source reads. The others are counted.

    A zip file is read in the order of its names, a tar in its own. Texts that may describe rows
    come last, because only then it is known whether there are any. Archives in archives are not
    read.
    """
    about: list[tuple[str, ReadReport, list[Document]]] = []
    has_rows = False
    members = _zip_members(file, report) if is_zip(file.path) else _tar_members(file)
    for member in members:
        found = classify(file.source, member.name, member.path, member.is_whole_source)
        if found.format in ("", "archive") or (found.format == "latex" and _is_tar(member.path)):
            report.skipped.add(found.kind, member.name)
            continue
        inside = replace(member, format=found.format)
        if _may_describe(inside):
            mine = ReadReport(formats=Counter((found.format,)))
            about.append((member.name, mine, list(_documents(inside, mine))))
            continue
        has_rows |= found.format in ROWS
        report.formats[found.format] += 1
        yield from _documents(inside, report)
    for name, mine, documents in about:
        if has_rows:
            report.skipped.add("description of the data", name)
        else:
            report.add_json(mine.to_json())
            yield from documents


def _documents(member: InputFile, report: ReadReport) -> Iterator[Document]:
    for document in readers.read(member, report):
        yield replace(document, format=document.format or member.format)


def _may_describe(member: InputFile) -> bool:
    """Return True for a short README or licence of a source whose format is detected."""
    name = PurePosixPath(member.name.rpartition("#")[2]).name
    is_short = member.size <= LONGEST_ABOUT
    return (
        member.source.format == "auto" and member.format == "text" and is_short and is_about(name)
    )


def _is_tar(path: Path) -> bool:
    return tarfile.is_tarfile(path)


def _zip_members(file: InputFile, report: ReadReport) -> Iterator[InputFile]:
    with zipfile.ZipFile(file.path) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.filename)
        infos = [info for info in infos if not info.is_dir() and not _is_hidden(info.filename)]
        for info in infos:
            if info.flag_bits & _ENCRYPTED:
                report.skipped.add("encrypted", f"{file.name}#{info.filename}")
                continue
            size = info.file_size  # reading yields no more
            with (
                archive.open(info) as content,
                _unpacked(file, info.filename, size, content) as member,
            ):
                yield replace(member, is_whole_source=file.is_whole_source and len(infos) == 1)


def _tar_members(file: InputFile) -> Iterator[InputFile]:
    with open_bytes(file.path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isfile() else None
            if content is not None and not _is_hidden(info.name):
                with _unpacked(file, info.name, info.size, content) as member:
                    yield member


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _check_space(file: InputFile, name: str, size: int) -> None:
    """Raise InputError for a member whose `size` bytes are more than half of the free space."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free // 2:
        raise InputError(
            "CorpusUnreadable",
            f"source {file.source.name!r}: {file.path}: {name} has {size >> 20} MiB, and {folder}"
            f" has {free >> 20} MiB for twice as much",
            field=file.source.field,
            remedy="unpack the archive, or set TMPDIR to a larger folder",
        )


@contextmanager
def _unpacked(file: InputFile, name: str, size: int, content: IO[bytes]) -> Iterator[InputFile]:
    """Yield a member of `size` bytes as a temporary file. Its own name is for messages only."""
    _check_space(file, name, size)
    with tempfile.NamedTemporaryFile(prefix="llmtrain-member-") as unpacked:
        shutil.copyfileobj(content, unpacked, 1 << 20)
        unpacked.flush()
        path = Path(unpacked.name)
        yield replace(
            file,
            path=path,
            name=f"{file.name}#{name}",
            size=path.stat().st_size,
            is_whole_source=False,
            origin=f"{file.path}#{name}",
        )
