"""Files at the edges of what readers expect: nothing is lost silently, and time stays linear."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.documents import ReadReport
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.readers.content import inspect


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


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def test_a_text_without_any_end_of_a_line_is_read(tmp_path: Path) -> None:
    text = "word " * 60_000
    report = ReadReport()
    assert "".join(texts(written(tmp_path / "a.txt", text), report)) == text
    assert report.boundaries == {"paragraphs": 1}


def test_comments_before_a_text_cost_linear_time(tmp_path: Path) -> None:
    comments = "<!-- one of many lines of a licence -->\n" * 100
    assert inspect(written(tmp_path / "a.md", f"{comments}# Title")).format == "text"
    assert inspect(written(tmp_path / "b", f"{comments}<!DOCTYPE html><p>x")).format == "html"


def test_a_tar_file_may_end_with_a_zip_file(tmp_path: Path) -> None:
    members = {"a.txt": b"one", "b.txt": b"two", "c.zip": zipped({"x.txt": b"inner"})}
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
