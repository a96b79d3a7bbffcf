"""What a file is, by its content first and by its name second."""

from __future__ import annotations

import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.readers.charsets import decode_start
from llmtrain_trainer.data.readers.compressed import open_bytes, without_compression
from llmtrain_trainer.data.readers.records import SFT_FIELDS, TEXT_FIELDS, has_text_column

HEAD = 16 << 10
"""Bytes at the start of a file that are inspected."""

_NAMES = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".parquet": "parquet",
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".tex", ".tar", ".tgz"), "latex"),
}
_CODE = {
    *(".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".cxx", ".go", ".h", ".hpp", ".hs", ".html"),
    *(".java", ".jl", ".js", ".json", ".kt", ".lua", ".m", ".md", ".ml", ".php", ".pl", ".proto"),
    *(".py", ".pyi", ".r", ".rb", ".rs", ".rst", ".scala", ".sh", ".sql", ".swift", ".tex"),
    *(".toml", ".ts", ".tsx", ".txt", ".vue", ".yaml", ".yml"),
}
ROWS = frozenset(("jsonl", "csv", "parquet"))
"""Formats of rows with named fields."""
_MARKED = frozenset(("parquet", "warc", "mediawiki", "stackexchange", "html", "archive"))
"""Formats that the content alone tells."""
_PROSE = ("text", "html")

_BINARY = (
    (b"%PDF-", "PDF"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"RIFF", "audio or video"),
    (b"ID3", "audio or video"),
    (b"OggS", "audio or video"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!", "RAR archive"),
    (b"\xd0\xcf\x11\xe0", "office document"),
    (b"SQLite format 3\0", "database"),
    (b"\x7fELF", "program"),
    (b"MZ", "program"),
    (b"ARROW1", "Arrow file"),
    (b"ORC", "ORC file"),
    (b"Obj\x01", "Avro file"),
    (b"\x93NUMPY", "array"),
    (b"\x89HDF", "array"),
    (b"GGUF", "model weights"),
)
_HTML = re.compile(
    r"(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+<(?:!doctype\s+html|html)\b", re.I | re.S
)
"""The end of a comment is the first `-->`: other ends would be tried in exponential time."""
_RECORD = re.compile(r"\[?\s*\{\s*(?:\"|\}|\Z)")
_FIELD = re.compile(r'"(?:' + "|".join((*TEXT_FIELDS, *SFT_FIELDS)) + r')"\s*:')
_TAR_NAMES = 64
_ABOUT = re.compile(r"(?:readme|licen[cs]e|copying|dataset_?card)\b.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Content:
    """What the content of a file is."""

    format: str
    """Name of a reader; `text` for any other text; empty if nothing reads it."""
    kind: str
    """In words, for files that are not read."""


def is_about(name: str) -> bool:
    """Return True for the name of a text that describes the rows beside it."""
    return _ABOUT.match(name) is not None


def inspect(path: Path) -> Content:
    """Return what a file is by its first bytes. A damaged file is of the kind `damaged`."""
    try:
        with open_bytes(path) as stream:
            head = stream.read(HEAD)
        if is_zip(path):
            return _zip(path)
        if head[257:262] == b"ustar":
            return _tar(path)
    except Exception:  # libraries raise any kind of error for a damaged file; its reader will too
        return Content("", "damaged")
    if head.startswith(b"PAR1"):
        return Content("parquet", "Parquet")
    if head.startswith(b"WARC/"):
        return Content("warc", "WARC")
    text = decode_start(head)
    for magic, kind in _BINARY:
        # a text may start like ORCHESTRA
        if head.startswith(magic) and (text is None or not magic.isalpha()):
            return Content("", kind)
    return Content("", "binary") if text is None else _text(text.lstrip())


def _text(start: str) -> Content:
    if start.startswith("<"):
        if "<mediawiki" in start[:1024]:
            return Content("mediawiki", "MediaWiki")
        if "<posts" in start[:1024]:
            return Content("stackexchange", "Stack Exchange")
        if _HTML.match(start):
            return Content("html", "HTML")
        if start.startswith("<?xml"):
            return Content("", "XML")
    if _RECORD.match(start):
        return Content("jsonl" if _FIELD.search(start) else "", "JSON without a field of text")
    return Content("text", "text")


def is_zip(path: Path) -> bool:
    """Return True for a file that starts like a zip file. A tar file may end like one."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _zip(path: Path) -> Content:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "[Content_Types].xml" in names or names[:1] == ["mimetype"]:
        return Content("", "office document")
    return Content("archive", "archive")


def _tar(path: Path) -> Content:
    """Tell submissions to arXiv, and bulk archives of them, from other archives."""
    with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for number, member in enumerate(archive):
            name = Path(member.name)
            if name.suffix == ".tex" or (name.suffix == ".gz" and not Path(name.stem).suffix):
                return Content("latex", "LaTeX")
            if number == _TAR_NAMES:
                break
    return Content("archive", "archive")


def classify(source: Source, name: str, path: Path, is_whole_source: bool) -> Content:
    """Return the format in which a source reads a file, or the kind that it does not read.

    The content decides between `auto` formats. A name that promises a format, with text or damage
    inside, keeps it, so that its reader names the damage. The only file of a source is read if
    anything can read it.
    """
    content = inspect(path)
    suffix = Path(without_compression(name.lower())).suffix
    named = _NAMES.get(suffix)
    wanted = source.format
    if content.format == "archive" and wanted not in ("latex", "warc"):
        return content
    if wanted == "code":
        known = Path(name).suffix.lower() in _CODE or is_whole_source
        return Content("code", "code") if known else Content("", _suffix_kind(suffix))
    if wanted == "auto" or wanted == "chat":
        found = _detected(content, named, suffix, is_whole_source)
        is_table = found.format == "csv" and content.format == "text" and not is_whole_source
        if is_table and not has_text_column(path, source.charset):
            return Content("", "CSV without a column of text")
        if wanted == "auto" or found.format in ROWS or not found.format:
            return found
        if is_whole_source and found.format == "text":
            return Content("jsonl", content.kind)
        return Content("", f"{found.format}, not conversations")
    if wanted in (content.format, named) or is_whole_source:
        readable = wanted != "text" or content.format or content.kind == "damaged"
        return Content(wanted, content.kind) if readable else content
    # text may have any suffix or none; arXiv's submissions are NUMBER.gz
    loose = named is None and content.format == "text"
    if loose and (wanted == "text" or (wanted == "latex" and Path(name).suffix == ".gz")):
        return Content(wanted, content.kind)
    return Content("", content.kind if not content.format else f"{content.format}, not {wanted}")


def _detected(content: Content, named: str | None, suffix: str, is_whole_source: bool) -> Content:
    if content.format in _MARKED:
        return content
    if content.format == "latex":
        return content
    if named and (content.kind == "damaged" or (content.kind == "binary" and named not in _PROSE)):
        return Content(named, content.kind)
    if not content.format:
        # a file of JSON lines without text is an error of its rows
        rows = suffix in (".jsonl", ".ndjson") and content.kind.startswith("JSON")
        return Content("jsonl", content.kind) if rows else content
    if content.format == "jsonl":
        return content
    if suffix == ".json":
        return Content("", "JSON without a field of text")
    if named or is_whole_source:
        return Content(named or "text", content.kind)
    return Content("", _suffix_kind(suffix))


def _suffix_kind(suffix: str) -> str:
    return f"text named *{suffix[:16]}" if suffix else "text without a suffix"
