"""Files at the edges of what readers expect: nothing is lost silently, and time stays linear."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.config import ChatConfig, DataConfig, Source
from llmtrain_trainer.data.documents import ReadReport
from llmtrain_trainer.data.left_out import sentences
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.data.readers import read, records
from llmtrain_trainer.data.readers.content import inspect
from llmtrain_trainer.data.readers.html import html_text
from llmtrain_trainer.errors import InputError
from tests.support.trainer.archives import tarred, zipped


def texts(path: Path, report: ReadReport, **changes: Any) -> list[str]:
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", **changes)
    return [document.text for file in list_files(source) for document in read(file, report)]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prepare(to: Path, path: Path, **changes: Any) -> dict[str, Any]:
    chat = changes.pop("chat", None)
    source = Source("s", f"file://{path}", "spec.data.sources[0].uri", **changes)
    run_share(Workspace(plan_preparation(DataConfig((source,), 0.1, 300, 0, chat=chat)), to))
    facts: dict[str, Any] = read_manifest(to)["sources"][0]
    return facts


def test_a_text_without_any_end_of_a_line_is_read(tmp_path: Path) -> None:
    text = "word " * 60_000
    report = ReadReport()
    assert "".join(texts(written(tmp_path / "a.txt", text), report)) == text
    assert report.boundaries == {"paragraphs": 1}


def test_comments_before_a_text_cost_linear_time(tmp_path: Path) -> None:
    comments = "<!-- one of many lines of a licence -->\n" * 100
    assert inspect(written(tmp_path / "a.md", f"{comments}# Title")).format == "text"
    assert inspect(written(tmp_path / "b", f"{comments}<!DOCTYPE html><p>x")).format == "html"


@pytest.mark.parametrize("part", ["<a ", "<!-- >", "<!--", "</a ", "<? ", "<![CDATA[ "])
def test_markup_without_an_end_costs_linear_time(part: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        assert html_text(f"<p>text</p>{part * count}").startswith("text")
        return time.process_time() - start

    few = min(seconds(2_000) for _ in range(3))
    assert min(seconds(8_000) for _ in range(3)) < 8 * few + 0.05


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_member_that_would_fill_the_disk_is_not_unpacked(
    pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a", pack({"a.txt": b"a text", "b.txt": b"0" * 2000}))
    usage = shutil.disk_usage(tmp_path)._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"a: b\.txt has 0 MiB.* for twice as much") as error:
        texts(path, ReadReport())
    assert "TMPDIR" in error.value.remedy


def test_documents_with_bytes_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path / f"{number}.txt", f"document {number} of them: é")
    written(tmp_path / "4.txt", b"\xff" + "é é é \ufffd".encode())
    undecoded = prepare(tmp_path / "out", tmp_path)["undecoded"]
    assert undecoded == {"U+FFFD": {"count": 1, "first": ["s/4.txt: 2 characters"]}}
    assert list(sentences(read_manifest(tmp_path / "out"))) == [
        "s: kept 1 documents with U+FFFD: s/4.txt: 2 characters"
    ]


def test_a_tar_file_may_end_with_a_zip_file(tmp_path: Path) -> None:
    members = {
        "a.txt": b"one",
        "b.txt": b"two",
        "c.zip": zipped({"x.txt": b"inner"}, zipfile.ZIP_STORED),
    }
    report = ReadReport()
    assert texts(written(tmp_path / "a.tar", tarred(members)), report) == ["one", "two"]
    assert report.skipped.counts == {"archive": 1}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_description_beside_rows_of_an_archive_is_left_out(pack: Any, tmp_path: Path) -> None:
    members = {"README.md": b"about", "a.txt": b"a text"}
    path = written(tmp_path / "a", pack(members))
    assert texts(path, ReadReport()) == ["a text", "about"]
    written(path, pack({**members, "rows.jsonl": b'{"text": "row"}\n'}))
    report = ReadReport()
    assert texts(path, report) == ["a text", "row"]
    assert report.skipped.first == {"description of the data": ["s/a#README.md"]}
    assert report.formats == {"text": 1, "jsonl": 1}


@pytest.mark.parametrize("start", ["ORCHESTRA", "MZUNGU", "RIFFLE", "OggS"])
def test_a_text_may_start_like_another_kind(start: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", f"{start} is a word")
    assert inspect(path).format == "text"
    assert not inspect(written(path, start.encode() + b"\0\1\2")).format


def test_names_that_are_not_unicode_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    written(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")), "text of a file")
    written(folder / "a.jsonl", '{"id": "\\ud800", "text": "text of a row"}\n')
    written(folder / "a.tar", tarred({"caf\udce9.txt": b"text of a member"}))
    documents = prepare(tmp_path / "out", folder)["documents"]
    assert documents["train"] + documents["heldOut"] == documents["read"] == 3


def test_small_objects_of_an_array_are_read_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that is held is copied once per read, not once per object."""
    copied = 0

    class Text(str):
        def __getitem__(self, key: Any) -> str:
            nonlocal copied
            part = super().__getitem__(key)
            copied += len(part)
            return Text(part)

        def __add__(self, other: str) -> str:
            return Text(super().__add__(other))

        def __radd__(self, other: str) -> str:
            return Text(other + str(self))

        def lstrip(self, chars: str | None = None, /) -> str:
            nonlocal copied
            copied += len(self)
            return Text(super().lstrip(chars))

    class Stream(io.StringIO):
        def read(self, size: int | None = -1, /) -> str:
            return Text(super().read(size))

    rows = [{"text": "long" * 10_000}, *({"text": f"row {n}"} for n in range(1000))]
    content = json.dumps(rows)
    assert list(records._values(Stream(content))) == rows
    assert copied < 4 * len(content)


def test_an_array_may_be_indented_in_any_way(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[  {"text": "a"},\n {"text": "b"}]')
    assert texts(path, ReadReport()) == ["a", "b"]


def test_lines_that_an_odd_quote_takes_are_counted(tmp_path: Path) -> None:
    lines = ["text\tn", '"So," he said\t1', "plain\t2", '"Oh\t3', "lost\t4", 'a "b"\t5', "end\t6"]
    report = ReadReport()
    assert texts(written(tmp_path / "a.tsv", "\n".join(lines)), report) == ["plain", "end"]
    assert report.dropped.counts == {"quotes": 4}
    assert report.dropped.first["quotes"][0].startswith("s/a.tsv:1: its quotes do not match")

    rows = "".join(f"row {n}\n" for n in range(90))
    path = written(tmp_path / "b.csv", f'text\n{rows}"open\n{rows}')
    with pytest.raises(InputError, match="91 of 181 rows cannot be used: 91 quotes"):
        prepare(tmp_path / "out", path)
    proper = 'text,n\n"a ""b"",\n\nc",1\n'
    assert texts(written(tmp_path / "c.csv", proper), ReadReport()) == ['a "b",\n\nc']


def test_a_table_without_text_beside_other_files_is_counted(tmp_path: Path) -> None:
    written(tmp_path / "metadata.csv", "id,title\n1,x\n")
    written(tmp_path / "empty.tsv", "")
    written(tmp_path / "a.txt", "a text")
    report = ReadReport()
    source = Source("s", f"file://{tmp_path}", "s")
    assert [file.name for file in list_files(source, report)] == ["s/a.txt"]
    assert report.skipped.counts == {"CSV without a column of text": 2}
    with pytest.raises(InputError, match="no column text or content among id, title"):
        texts(tmp_path / "metadata.csv", ReadReport())


def test_a_damaged_byte_costs_its_line_not_the_characters_after_it(tmp_path: Path) -> None:
    content = (
        b"caf\xe9\n" + b"plain line\n" * 20_000 + "你好\r\n".encode() + b"\x93so\x94 " + b"x" * 9
    )
    path = written(tmp_path / "a.txt", content)
    report = ReadReport()
    (text,) = texts(path, report, documents="file")
    assert text == "café\n" + "plain line\n" * 20_000 + "你好\n“so” " + "x" * 9
    assert report.charsets == {"utf-8 and windows-1252": 1}
    long = b"\xe9\n" + b"plain line\n" * 20_000 + "é".encode() * 400_000
    (text,) = texts(written(path, long), ReadReport(), documents="file")
    assert text == "é\n" + "plain line\n" * 20_000 + "é" * 400_000


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_long_examples_first_are_no_more_than_their_share(share: float, tmp_path: Path) -> None:
    """As in data that is sorted by length."""
    long = [
        {"prompt": f"n {n}", "response": " ".join(map(str, range(n, n + 80)))} for n in range(150)
    ]
    short = [{"prompt": f"is {n} even", "response": f"it is {n}"} for n in range(100)]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, long + short)))
    chat = ChatConfig(64, "plain")
    if share == 0.5:
        with pytest.raises(InputError, match="tokens, and the model's sequences have 64"):
            prepare(tmp_path / "out", path, format="chat", chat=chat, max_unusable_rows=share)
        return
    facts = prepare(tmp_path / "out", path, format="chat", chat=chat, max_unusable_rows=share)
    assert facts["documents"]["dropped"] == {"row: overlong": 150}
