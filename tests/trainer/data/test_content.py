"""Files that are not what their names say, and character sets: read, or counted by kind."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.documents import ReadReport
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.readers.charsets import decode_page
from llmtrain_trainer.data.readers.html import html_text
from llmtrain_trainer.errors import InputError
from tests.support.trainer.archives import tarred, zipped

ROWS = [{"text": f"row {n}\n  indented", "url": f"u{n}"} for n in range(5)]
TEXTS = [row["text"] for row in ROWS]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


def texts(path: Path, report: ReadReport, **changes: str) -> list[str]:
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", **changes)
    files = list_files(source, report)
    return [document.text for file in files for document in read(file, report)]


def table(delimiter: str = ",") -> bytes:
    made = io.StringIO()
    writer = csv.DictWriter(made, ["url", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return made.getvalue().encode()


def parquet() -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), made)
    return made.getvalue()


READ = {
    "c4-train.00000.json.gz": gzip.compress(LINES),
    "rows.txt": LINES,
    "rows": LINES,
    "rows.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "gzip-without-suffix.jsonl": gzip.compress(LINES),
    "not-compressed.jsonl.gz": LINES,
    "utf-16.jsonl": LINES.decode().encode("utf-16"),
    "a.csv": table(),
    "a.tsv.xz": lzma.compress(table("\t")),
    "semicolons.csv": table(";"),
    "rows.bin": parquet(),
    "rows.zip": zipped({"a/rows.jsonl": LINES}),
    "rows.tar": gzip.compress(tarred({"a/rows.json.bz2": bz2.compress(LINES)})),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("name", READ)
def test_rows_are_found_whatever_the_name(name: str, alone: bool, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(READ[name])
    report = ReadReport()
    if not alone:
        (folder / "README.md").write_text("# About the rows\n" * 200)
    assert texts(folder / name if alone else folder, report) == TEXTS
    about = {"description of the data": 1}
    assert report.skipped.counts == ({} if alone else about)


def test_text_pages_and_what_is_neither(tmp_path: Path) -> None:
    files = {
        **{f"{n:02d}.html": f"<!DOCTYPE html><p>page {n}</p>".encode() for n in range(15)},
        "a.pdf": b"%PDF-1.7\n%\xe2\xe3",
        "scan.txt": b"%PDF-1.4 binary",
        "logo.png": b"\x89PNG\r\n\x1a\n",
        "noise.txt": bytes(range(256)) * 9,
        "book.docx": zipped({"[Content_Types].xml": b"<x/>"}),
        "meta.json": b'{"license": "x"}',
        "feed.xml": b"<?xml version='1.0'?><rss/>",
        "run.py": b"print(1)",
        "note.txt": b"a note",
        "notes.zip": zipped({"a.txt": b"zipped", "b.gif": b"GIF89a", ".x": b"no"}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    report = ReadReport()
    assert texts(tmp_path, report) == [*(f"page {n}" for n in range(15)), "a note", "zipped"]
    assert report.formats == {"html": 15, "text": 2, "archive": 1}
    assert report.skipped.counts == {
        "PDF": 2,
        "binary": 1,
        "image": 2,
        "office document": 1,
        "JSON without a field of text": 1,
        "XML": 1,
        "text named *.py": 1,
    }
    assert report.skipped.first["PDF"] == ["a.pdf", "scan.txt"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.pdf", b"%PDF-1.7", "1 PDF"),
        ("a.bin", bytes(range(256)), "1 binary"),
        ("a.json", b'{"license": "x"}', "1 JSON without a field of text"),
        ("a.docx", zipped({"[Content_Types].xml": b""}), "1 office document"),
    ],
)
@pytest.mark.parametrize("form", ["auto", "text"])
def test_a_source_of_nothing_else_is_refused_with_what_it_is(
    name: str, content: bytes, kind: str, form: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=kind) as caught:
        texts(tmp_path / name, ReadReport(), format=form)
    assert caught.value.reason == "CorpusMissing" and caught.value.remedy


STORY = "Es wäre schön – “so” für 5 €."


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        (STORY.encode(), "utf-8"),
        (STORY.encode("utf-8-sig"), "utf-8"),
        (STORY.encode("utf-16"), "utf-16-le"),
        (b"\xfe\xff" + STORY.encode("utf-16-be"), "utf-16-be"),
        (STORY.encode("utf-16-le"), "utf-16-le"),
        (STORY.encode("utf-32"), "utf-32-le"),
        (STORY.encode("cp1252"), "windows-1252"),
    ],
)
@pytest.mark.parametrize("before", ["", "plain words " * 30_000])
def test_text_in_the_character_sets_of_old_files(
    before: str, content: bytes, charset: str, tmp_path: Path
) -> None:
    """Also if the first byte that tells them apart is far from the start."""
    if charset == "utf-16-be" or content.startswith(b"\xff\xfe") or charset.startswith("utf-32"):
        encoded = before.encode(charset)
        mark = 4 if charset.startswith("utf-32") else 2
        content = content[:mark] + encoded + content[mark:]
    elif charset == "utf-16-le":
        content = before.encode(charset) + content
    elif not content.startswith(b"\xef\xbb\xbf"):
        content = before.encode() + content
    else:
        before = ""
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    report = ReadReport()
    assert texts(path, report, documents="file") == [before + STORY]
    assert report.charsets == {charset: 1}


def test_a_damaged_byte_in_utf_8_does_not_make_it_windows_1252(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("äöü ß".encode() + b"\xff" + "é".encode())
    assert texts(tmp_path, ReadReport()) == ["äöü ß\ufffdé"]


def test_a_source_can_name_its_character_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Привет, мир".encode("koi8-r"))
    assert texts(tmp_path, ReadReport(), charset="koi8-r") == ["Привет, мир"]
    with pytest.raises(InputError, match="'klingon' is not the name of a character set"):
        texts(tmp_path, ReadReport(), charset="klingon")


@pytest.mark.parametrize(
    ("head", "label", "encoded", "text"),
    [
        ("", "iso-8859-1", b"\x93so\x94 \x80", "“so” €"),
        ("", "latin1", b"\x85", "…"),
        ("", "us-ascii", b"\xe9", "é"),
        ("", "gb2312", "镕".encode("gbk"), "镕"),
        ("", "GBK", "㐀".encode("gb18030"), "㐀"),
        ("", "x-sjis", "①髙".encode("cp932"), "①髙"),
        ("", "ks_c_5601-1987", "똠".encode("cp949"), "똠"),
        ("", "tis-620", "ไทย".encode("cp874"), "ไทย"),
        ("", "iso-8859-9", "ğ".encode("cp1254"), "ğ"),
        ('<meta charset="windows-1251">', "", "да".encode("cp1251"), "да"),
        (
            '<meta http-equiv=Content-Type content="text/html; charset=euc-jp">',
            "",
            "日本".encode("euc-jp"),
            "日本",
        ),
        ('<?xml version="1.0" encoding="iso-8859-2"?>', "", "ł".encode("iso-8859-2"), "ł"),
        ("<meta charset=utf-16>", "", "é".encode(), "é"),
        ("<!-- <meta charset=koi8-r> -->", "", "é".encode(), "é"),
        ("<meta charset=koi8-r>", "utf-8", "é".encode(), "é"),
        ("<meta charset=no-such>", "neither", b"\xe9", "é"),
    ],
)
def test_pages_are_decoded_as_by_a_browser(
    head: str, label: str, encoded: bytes, text: str
) -> None:
    page = head.encode() + b"<p>" + encoded
    header = f"text/html; charset={label}" if label else "text/html"
    assert html_text(decode_page(page, header)[0]) == text
    marked = b"\xef\xbb\xbf<meta charset=koi8-r><p>\xc3\xa9"
    assert html_text(decode_page(marked, "text/html; charset=gbk")[0]) == "é"


@pytest.mark.parametrize(
    "page",
    [
        "<html><head><title>no</title><p>yes",
        "<head><title>no</title><meta name=a><script>no</script>yes",
        "<title>no</title><style>no</style><div>yes</div>",
        "<head><title>no</title></head>yes",
        "<html><head><svg/><p>yes</p>",
    ],
)
def test_a_page_needs_no_body_element(page: str) -> None:
    assert html_text(page) == "yes"


def test_no_held_out_text_is_an_error_of_the_preparation(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A single document.")
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri")
    work = Workspace(plan_preparation(DataConfig((source,), 0.1, 300, 0)), tmp_path / "out")
    with pytest.raises(InputError, match="of 1 documents 1 are left, so none can be held out"):
        run_share(work)
    assert not work.manifest.exists()


def test_the_manifest_counts_files_and_what_was_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"document {number} of them")
    (folder / "4.html").write_bytes(b"<!doctype html><meta charset=latin1><p>caf\xe9")
    (folder / "a.pdf").write_bytes(b"%PDF-1.7")
    (folder / "b.zip").write_bytes(zipped({"a.txt": b"in a zip", "b.pdf": b"%PDF-1.7"}))
    source = Source("s", f"file://{folder}", "s")
    run_share(Workspace(plan_preparation(DataConfig((source,), 0.1, 300, 0)), tmp_path / "out"))
    (facts,) = read_manifest(tmp_path / "out")["sources"]
    assert facts["formats"] == {"archive": 1, "html": 1, "text": 5}
    assert facts["charsets"] == {"utf-8": 5, "windows-1252": 1}
    assert facts["skipped"] == {"PDF": {"count": 2, "first": ["a.pdf", "s/b.zip#b.pdf"]}}
