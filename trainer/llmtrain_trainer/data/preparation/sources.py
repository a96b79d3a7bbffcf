"""Sources of text, `package://PACKAGE/FOLDER` or `file:///PATH`, and their files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import InputFile
from llmtrain_trainer.data.readers.compressed import open_bytes, without_compression
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import is_inside

_SUFFIXES = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".parquet": "parquet",
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".tex", ".tar", ".tgz"), "latex"),
}

_CODE = {
    ".c",
    ".cc",
    ".cpp",
    ".cs",
    ".css",
    ".cu",
    ".cxx",
    ".go",
    ".h",
    ".hpp",
    ".hs",
    ".html",
    ".java",
    ".jl",
    ".js",
    ".json",
    ".kt",
    ".lua",
    ".m",
    ".md",
    ".ml",
    ".php",
    ".pl",
    ".proto",
    ".py",
    ".pyi",
    ".r",
    ".rb",
    ".rs",
    ".rst",
    ".scala",
    ".sh",
    ".sql",
    ".swift",
    ".tex",
    ".toml",
    ".ts",
    ".tsx",
    ".txt",
    ".vue",
    ".yaml",
    ".yml",
}


def list_files(source: Source) -> list[InputFile]:
    """Return the files of a source, ordered by name.

    Raises InputError (`CorpusMissing`) with the field of the source if there is nothing to read.
    """
    root = locate(source)
    try:
        paths = [root] if root.is_file() else sorted(_walk(root))
        files = [file for path in paths if (file := _file(source, root, path))]
    except OSError as error:
        raise _missing(source, f"cannot read {error.filename}: {error.strerror}") from error
    if not files:
        wanted = {"auto": "text", "chat": "jsonl"}.get(source.format, source.format)
        raise _missing(source, f"there is no file of a known format ({wanted}) in {root}")
    return files


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden ones."""
    for path in root.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():  # a link may create a cycle
            yield from _walk(path)
        elif path.is_file():
            yield path


def _file(source: Source, root: Path, path: Path) -> InputFile | None:
    is_whole_source = path == root
    wanted = source.format
    found = format_of(path)
    if wanted == "auto":
        wanted = found or ("text" if is_whole_source else "")
    elif wanted == "code":
        wanted = "code" if path.suffix.lower() in _CODE or is_whole_source else ""
    elif wanted == "chat":
        wanted = "chat" if found == "jsonl" or is_whole_source else ""
    elif found != wanted and not is_whole_source:
        # text may have any suffix or none; arXiv's submissions are NUMBER.gz
        loose = found is None and (wanted == "text" or (wanted, path.suffix) == ("latex", ".gz"))
        wanted = wanted if loose else ""
    if not wanted:
        return None
    facts = path.stat()
    name = f"{source.name}/{path.name if is_whole_source else path.relative_to(root).as_posix()}"
    return InputFile(source, path, name, wanted, facts.st_size, facts.st_mtime_ns, is_whole_source)


def format_of(path: Path) -> str | None:
    """Return the format by the name of a file, or by the root element of its XML."""
    name = without_compression(path.name.lower())
    suffix = Path(name).suffix
    if suffix == ".xml":
        with open_bytes(path) as stream:
            start = stream.read(1024)
        if b"<mediawiki" in start:
            return "mediawiki"
        return "stackexchange" if b"<posts" in start else None
    return _SUFFIXES.get(suffix)


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
