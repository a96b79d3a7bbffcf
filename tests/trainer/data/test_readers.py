"""Every format, as its makers write it, and what a damaged file is answered with."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import Document
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.errors import InputError
from tests.support.trainer.archives import tarred


def documents(path: Path, form: str = "auto") -> list[Document]:
    source = Source("s", f"file://{path}", "spec.data.sources[2].uri", format=form)
    return [document for file in list_files(source) for document in read(file)]


def texts(path: Path, form: str = "auto") -> list[str]:
    return [document.text for document in documents(path, form)]


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines_compressed_in_several_streams(tmp_path: Path, suffix: str) -> None:
    lines = [json.dumps({"id": f"n{n}", "text": f"zeile {n} \ud800 ß"}) + "\n" for n in range(50)]
    pack = COMPRESSIONS[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack("".join(lines[:20]).encode()) + pack("".join(lines[20:]).encode()))
    found = documents(tmp_path)
    assert [each.name for each in found] == [f"s/a.jsonl{suffix}#n{n}" for n in range(50)]
    assert found[49].text == "zeile 49 \ud800 ß"


def test_parquet_by_row_group(tmp_path: Path) -> None:
    table = pyarrow.table({"content": [f"row {n}" for n in range(3000)] + [None], "n": [0] * 3001})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    found = documents(tmp_path)
    assert [each.text for each in found] == [f"row {n}" for n in range(3000)]
    assert len({each.name for each in found}) == 3000


PAGE = """<html><head><title>no</title><script>var x = "no";</script></head><body><nav>no</nav>
<h1>Über uns</h1><p>Two &amp; two<br>make four.</p><style>p {}</style><ul><li>one<li>two</ul>"""


def test_warc_and_wet(tmp_path: Path) -> None:
    path = tmp_path / "crawl.warc.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for kind, content in (
            ("text/html; charset=latin-1", PAGE.encode("latin-1")),
            ("image/png", b"\x89PNG no"),
        ):
            head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    "http://x.test/", "response", io.BytesIO(content), http_headers=head
                )
            )
        writer.write_record(
            writer.create_warc_record("http://x.test/", "conversion", io.BytesIO("ß".encode()))
        )
    page, text = texts(path)
    assert " ".join(page.split()) == "Über uns Two & two make four. one two"
    assert page.strip().count("\n") >= 4 and text == "ß"


def warc(*pages: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    writer = WARCWriter(packed, gzip=True)
    for kind, content in pages:
        head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                "http://x.test/", "response", io.BytesIO(content), http_headers=head
            )
        )
    return packed.getvalue()


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("text/html", b"<p>a<![foo[bar]]>b</p>", "ab"),
        ("text/html", b"<p>a<![if !IE]>b<![endif]></p>", "ab"),
        ("text/html", b"<p>a<![foo", "a"),
        ("text/html", b"<!DOCTYPE [ <!x ]> <p>a", "a"),
        ("text/html; charset=idna", b"<p>a\xff", "aÿ"),
        ("text/html; charset=undefined", b"<p>a\xc3\xbc", "aü"),
        ("text/html; charset=base64", b"<p>a", "a"),
        ("text/html; charset=no-such", b"<p>a", "a"),
        ("text/html", b"<div>" * 5000 + b"a", "a"),
    ],
)
def test_an_odd_page_does_not_end_a_crawl(
    tmp_path: Path, kind: str, content: bytes, text: str
) -> None:
    (tmp_path / "crawl.warc.gz").write_bytes(
        warc(("text/html", b"<p>before"), (kind, content), ("text/html", b"<p>after"))
    )
    assert [" ".join(each.split()) for each in texts(tmp_path)] == ["before", text, "after"]


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">
<siteinfo><sitename>X</sitename></siteinfo>
<page><title>Ring</title><ns>0</ns><id>7</id><revision><id>1</id><text>A '''ring''' is a
[[band (jewellery)|band]].&lt;ref&gt;no&lt;/ref&gt; {{no|no}} [[File:no.jpg|thumb|no]]
[[Category:No]]
== Use ==
It is [[gold]]en.</text></revision></page>
<page><title>Rings</title><ns>0</ns><redirect title="Ring"/>
<revision><text>no</text></revision></page>
<page><title>Talk:Ring</title><ns>1</ns><revision><text>no</text></revision></page>
</mediawiki>"""


def test_mediawiki_dump(tmp_path: Path) -> None:
    (tmp_path / "pages-articles.xml.bz2").write_bytes(bz2.compress(WIKI.encode()))
    (found,) = documents(tmp_path)
    assert found.name == "s/pages-articles.xml.bz2#Ring"
    assert " ".join(found.text.split()) == "Ring A ring is a band. Use It is golden."


POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
 <row Id="1" PostTypeId="1" Title="Why?" Body="&lt;p&gt;I &lt;b&gt;ask&lt;/b&gt;.&lt;/p&gt;" />
 <row Id="2" PostTypeId="2" ParentId="1" Body="&lt;p&gt;Because 1 &amp;lt; 2.&lt;/p&gt;" />
 <row Id="3" PostTypeId="5" Body="no" />
</posts>"""


def test_stack_exchange_dump(tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").write_text(POSTS)
    question, answer = texts(tmp_path)
    assert question.split() == ["Why?", "I", "ask."]
    assert answer.strip() == "Because 1 < 2."
    (tmp_path / "Posts.xml").write_text(POSTS.replace("Because", "&lt;![foo[bar]]&gt; Because"))
    assert texts(tmp_path)[1].strip() == "Because 1 < 2."


MAIN = r"""\documentclass{article} % no
\newcommand{\R}{\mathbb{R}}\def\half{\frac{1}{2}}\newcommand{\two}[1]{#1#1}
\title{no}\begin{document}\maketitle no
\section{First}
Let $x \in \R$, 50\% of \half. % no
\input{body}
\begin{thebibliography}{9} no \end{thebibliography}\end{document}"""


def test_latex_submission_and_bulk_archive(tmp_path: Path) -> None:
    wanted = r"\section{First} Let $x \in \mathbb{R}$, 50\% of \frac{1}{2}. The \two{body}."
    submission = {"paper.tex": MAIN.encode(), "body.tex": rb"The \two{body}.", "a.png": b"\x89"}
    (tmp_path / "one.tar.gz").write_bytes(gzip.compress(tarred(submission)))
    lone = gzip.compress("\\section{Caf\xe9} ends.".encode("latin-1"))
    bulk = {"9901/9901001.gz": gzip.compress(tarred(submission)), "9901/9901002.gz": lone}
    (tmp_path / "two.tar").write_bytes(tarred(bulk))
    found = [" ".join(text.split()) for text in texts(tmp_path)]
    assert found == [wanted, wanted, "\\section{Café} ends."]


def test_source_tree_keeps_programs_only(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("def f():\n\treturn 1\n")
    (tmp_path / "pkg" / "data.py").write_bytes(b"\0\1")
    (tmp_path / ".git" / "b.py").write_text("no")
    (tmp_path / "c.bin").write_text("no")
    assert texts(tmp_path, "code") == ["def f():\n\treturn 1\n"]


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999)[:-40], "end-of-stream"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n')[:-9] + b"\0" * 9, "."),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdno", "."),
        ("a.parquet", b"PAR1 no", "."),
        ("a.warc", b"no archive\r\n", "not a WARC record"),
        (
            "a.warc.gz",
            overwritten(warc(("text/html", random.Random(0).randbytes(50_000)))),
            "ends before",
        ),
        (
            "a.warc.gz",
            overwritten(warc(("image/png", random.Random(0).randbytes(50_000)))),
            "ends before",
        ),
        ("a.xml", WIKI[:-200].encode(), "line 8"),
        ("a.xml", POSTS[:-20].encode(), "."),
        ("a.tar", tarred({"a.tex": b"x" * 9999})[:3000], "."),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        documents(tmp_path)
    error = caught.value
    assert error.reason == "CorpusUnreadable" and str(tmp_path / name) in error.message
    assert error.field == "spec.data.sources[2].uri" and error.remedy
