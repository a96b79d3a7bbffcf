"""Sources of text, `package://PACKAGE/FOLDER` or `file:///PATH`, and their files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import InputFile, ReadReport
from llmtrain_trainer.data.readers.charsets import is_charset
from llmtrain_trainer.data.readers.content import ROWS, Content, classify, is_about
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import is_inside

_DATA = frozenset((*ROWS, "archive", "warc", "mediawiki", "stackexchange"))


def list_files(source: Source, report: ReadReport | None = None) -> list[InputFile]:
    """Return the files of a source, ordered by name. The report counts them, and those left out.

    Raises InputError (`CorpusMissing`) with the field of the source if there is nothing to read.
    """
    report = ReadReport() if report is None else report
    if source.charset is not None and not is_charset(source.charset):
        raise InputError(
            "InvalidSpec",
            f"source {source.name!r}: {source.charset!r} is not the name of a character set",
            field=source.field,
            remedy="use a label of the WHATWG Encoding standard, such as shift_jis",
        )
    if source.languages:
        _require_known_languages(source)
    root = locate(source)
    files: list[InputFile] = []
    try:
        for path in [root] if root.is_file() else sorted(_walk(root)):
            found, file = _file(source, root, path)
            if file is None:
                report.skipped.add(found.kind, path.name)
            else:
                files.append(file)
    except OSError as error:
        raise _missing(source, f"cannot read {error.filename}: {error.strerror}") from error
    if source.format == "auto" and any(file.format in _DATA for file in files):
        for file in files:
            if _describes(file):
                report.skipped.add("description of the data", file.path.name)
        files = [file for file in files if not _describes(file)]
    for file in files:
        report.formats[file.format] += 1
    if not files:
        wanted = {"auto": "text", "chat": "jsonl"}.get(source.format, source.format)
        found_else = f": {report.skipped}" if report.skipped.counts else ""
        problem = f"there is no file of a known format ({wanted}) in {root}{found_else}"
        raise _missing(source, problem)
    return files


def _require_known_languages(source: Source) -> None:
    from llmtrain_trainer.data.preparation.languages import known_languages  # loads a model

    known = known_languages()
    unknown = [language for language in source.languages if language not in known]
    if unknown:
        raise InputError(
            "InvalidSpec",
            f"source {source.name!r}: the languages {', '.join(unknown)} cannot be detected",
            field=source.field,
            remedy=f"use codes among {', '.join(sorted(known))}",
        )


def _describes(file: InputFile) -> bool:
    return file.format == "text" and is_about(file.path.name)


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden ones."""
    for path in root.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():  # a link may create a cycle
            yield from _walk(path)
        elif path.is_file():
            yield path


def _file(source: Source, root: Path, path: Path) -> tuple[Content, InputFile | None]:
    is_whole_source = path == root
    found = classify(source, path.name, path, is_whole_source)
    if not found.format:
        return found, None
    facts = path.stat()
    name = f"{source.name}/{path.name if is_whole_source else path.relative_to(root).as_posix()}"
    size, modified = facts.st_size, facts.st_mtime_ns
    return found, InputFile(source, path, name, found.format, size, modified, is_whole_source)


def locate(source: Source) -> Path:
    """Return the file or folder of a source's URI."""
    parts = urlsplit(source.uri)
    path = unquote(parts.path)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = Path(path)
    elif parts.scheme == "package" and parts.netloc:
        package = _package(source, parts.netloc)
        root = package / path.lstrip("/")
        if not is_inside(root, package):
            raise InputError(
                "InvalidSpec",
                f"{source.uri!r} leads out of the package",
                field=source.field,
                remedy="name a folder in the package",
            )
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
    """Find the folder of an installed package without importing (and running) the package."""
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
