"""WARC (responses, HTML) and WET (extracted text), as in Common Crawl."""

from __future__ import annotations

import re
from collections.abc import Iterator

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecord

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.charsets import decode_page
from llmtrain_trainer.data.readers.compressed import compression_of, open_bytes
from llmtrain_trainer.data.readers.html import html_text

_MEDIA_TYPE = re.compile(r"[a-z]{1,20}/[\w.+-]{1,80}")


def read_warc(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every conversion record, and every HTML response, as a document."""
    # warcio needs the raw gzip file: each record is a gzip member.
    is_gzip = compression_of(file.path) == ".gz"
    with file.path.open("rb") if is_gzip else open_bytes(file.path) as stream:
        try:
            for record in ArchiveIterator(stream):
                name = record.rec_headers.get_header("WARC-Record-ID")
                text = _text(record, report)
                while record.raw_stream.read(1 << 20):
                    pass
                if record.raw_stream.limit:  # warcio takes corruption for the end of the file
                    raise file.unreadable(f"record {name} ends before its Content-Length")
                if text is not None:
                    yield Document(f"{file.name}#{name}", text)
        except ArchiveLoadFailed as error:
            raise file.unreadable(f"not a WARC record: {error!s:.200}") from error


def _text(record: ArcWarcRecord, report: ReadReport) -> str | None:
    """Return the text of a record, or None if it is of another kind."""
    name = record.rec_headers.get_header("WARC-Record-ID")
    if record.rec_type == "conversion":
        return str(record.content_stream().read().decode("utf-8", errors="replace"))
    if record.rec_type == "response" and record.http_headers:
        kind = record.http_headers.get_header("Content-Type") or ""
        kind_name = kind.partition(";")[0].strip().lower()
        if "html" in kind_name:
            page, charset = decode_page(record.content_stream().read(), kind)
            report.charsets[charset] += 1
            return html_text(page)
        if kind_name == "text/plain":
            text, charset = decode_page(record.content_stream().read(), kind)
            report.charsets[charset] += 1
            return text
        known = kind_name if _MEDIA_TYPE.fullmatch(kind_name) else "response of unknown type"
        report.skipped.add(known, str(name))
    return None
