"""WARC (responses, HTML) and WET (extracted text), as in Common Crawl."""

from __future__ import annotations

import re
from collections.abc import Iterator

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecord

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes
from llmtrain_trainer.data.readers.html import html_text

_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


def read_warc(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every conversion record, and every HTML response, as a document."""
    # warcio needs the raw gzip file: each record is a gzip member.
    with file.path.open("rb") if file.path.suffix == ".gz" else open_bytes(file.path) as stream:
        try:
            for record in ArchiveIterator(stream):
                name = record.rec_headers.get_header("WARC-Record-ID")
                text = _text(record)
                while record.raw_stream.read(1 << 20):
                    pass
                if record.raw_stream.limit:  # warcio takes corruption for the end of the file
                    raise file.unreadable(f"record {name} ends before its Content-Length")
                if text is not None:
                    yield Document(f"{file.name}#{name}", text)
        except ArchiveLoadFailed as error:
            raise file.unreadable(f"not a WARC record: {error!s:.200}") from error


def _text(record: ArcWarcRecord) -> str | None:
    """Return the text of a record, or None if it is of another kind."""
    if record.rec_type == "conversion":
        return str(record.content_stream().read().decode("utf-8", errors="replace"))
    if record.rec_type == "response" and record.http_headers:
        kind = record.http_headers.get_header("Content-Type") or ""
        if "html" in kind.lower():
            return html_text(decode_html(record.content_stream().read(), kind))
    return None


def decode_html(content: bytes, content_type: str) -> str:
    """Decode a page by its header, else by its first bytes, else as UTF-8."""
    found = _CHARSET.search(content_type.encode()) or _CHARSET.search(content[:2048])
    try:
        return content.decode(found[1].decode() if found else "utf-8", errors="replace")
    except (LookupError, UnicodeError):  # not a text encoding (idna), or unknown
        return content.decode("utf-8", errors="replace")
