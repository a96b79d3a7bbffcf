"""What ends a document: as chosen or detected, with one document in memory."""

from __future__ import annotations

import io
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.documents import InputFile, ReadReport
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import load, read_manifest
from llmtrain_trainer.data.readers import boundaries, read
from llmtrain_trainer.data.readers.boundaries import (
    LONGEST,
    LONGEST_RUN,
    PARAGRAPHS,
    SAMPLE,
    SEPARATOR,
    detect_boundary,
    split_documents,
)


def sentences(number: int) -> str:
    return " ".join(f"word{(number * 31 + i * i) % 97}" for i in range(10 + number % 30)) + "."


def split(text: str, boundary: str, separator: str = SEPARATOR) -> list[str]:
    return list(split_documents(io.StringIO(text), boundary, separator))


LINES = "\n".join(map(sentences, range(400)))
PROSE = " ".join(map(sentences, range(400)))


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        (LINES, "line"),
        (LINES + "\n\n", "line"),
        (LINES.replace(".\n", ".\n\n", 2), "line"),
        (LINES.replace(".\n", ".\n\n"), "paragraphs"),
        (textwrap.fill(PROSE, 72), "paragraphs"),
        (PROSE, "paragraphs"),
        ("\n".join(f"entry {n}" for n in range(400)), "paragraphs"),
        (LINES.replace(".\n", f".{SEPARATOR}", 9), "separator"),
        ("", "paragraphs"),
    ],
    ids=["lines", "end", "odd gaps", "gaps", "wrapped", "one line", "short", "separator", "empty"],
)
def test_the_boundary_of_a_lone_file_is_detected(text: str, boundary: str) -> None:
    assert detect_boundary(text[:SAMPLE], is_whole_source=True) == boundary


def test_a_file_among_others_is_one_document_unless_it_has_the_separator() -> None:
    assert detect_boundary(LINES, is_whole_source=False) == "file"
    assert detect_boundary(f"a{SEPARATOR}b", is_whole_source=False) == "separator"


@pytest.mark.parametrize(
    ("boundary", "text", "wanted"),
    [
        ("line", "a\n\n  b\nc", ["a", "  b", "c"]),
        ("blank-line", "a\nb\n\n\nc\n \t\n d\n", ["a\nb", "c", " d\n"]),
        ("separator", f"a\n\nb{SEPARATOR}{SEPARATOR}\nc", ["a\n\nb", "\nc"]),
        ("file", "a\n\nb\n", ["a\n\nb\n"]),
        ("paragraphs", "a\n\nb\n", ["a\n\nb\n"]),
        ("file", " \n", []),
    ],
)
def test_each_boundary(boundary: str, text: str, wanted: list[str]) -> None:
    assert split(text, boundary) == wanted


@given(st.lists(st.sampled_from(["a", "<", "|", "#", "##", "x" * 70_000]), max_size=30))
def test_a_separator_is_found_wherever_pieces_end(parts: list[str]) -> None:
    text = "".join(parts)
    assert split(text, "separator", "##") == [part for part in text.split("##") if part]


@given(st.lists(st.sampled_from(["a" * 3000, "b c " * 900, "\n", "\n\n", "d"]), max_size=40))
def test_runs_of_paragraphs_lose_nothing_but_line_ends(parts: list[str]) -> None:
    text = "".join(parts)
    found = split(text, "paragraphs")
    assert "".join(found).replace("\n", "") == text.replace("\n", "")
    assert all(len(document) <= LONGEST_RUN + 65_536 for document in found)
    assert all(len(document) >= PARAGRAPHS - 2 for document in found[:-1])


class Endless(io.TextIOBase):
    """Text of a length without one blank line, or without any end of a line."""

    def __init__(self, length: int, line_end: str) -> None:
        self._left = length
        self._line = "some words without an end " * 4 + line_end

    def readline(self, size: int | None = -1, /) -> str:
        assert size is not None and size > 0
        line = self._line if self._line.endswith("\n") else self._line * (size // len(self._line))
        line = line[: self._left]
        self._left -= len(line)
        return line


@pytest.mark.parametrize("line_end", ["\n", ""])
def test_text_without_blank_lines_is_divided_in_bounded_memory(line_end: str) -> None:
    """Each document costs what it is long, so the time is linear, too."""
    length = 4 << 20
    tracemalloc.start()
    total = 0
    for document in split_documents(Endless(length, line_end), "paragraphs"):
        assert len(document) <= LONGEST_RUN + 65_536
        total += len(document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length * 0.99 < total <= length
    assert peak < 2 << 20
    endless = Endless(LONGEST + (4 << 20), line_end)
    assert max(map(len, split_documents(endless, "blank-line"))) <= LONGEST + 65_536


ENDS = {
    "auto": LINES.replace("\n", "\n\n"),
    "blank-line": LINES.replace("\n", "\n\n"),
    "line": LINES,
    "separator": LINES.replace("\n", SEPARATOR),
}
"""A text with many ends of a document, by the boundary."""


LINES_AT_A_TIME = 7 << 20
"""Memory of the lines that a buffer holds before it joins them."""


def text_file(path: Path, unit: str, length: int, boundary: str) -> InputFile:
    path.write_text(unit * (length // len(unit)))
    (file,) = list_files(Source("s", f"file://{path}", "s", documents=boundary))
    return file


def peak_of_reading(file: InputFile) -> tuple[int, int]:
    """Return the most bytes that the reader held at a time, and the length of all documents."""
    tracemalloc.start()
    length = sum(len(document.text) for document in read(file, ReadReport()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, length


@pytest.mark.parametrize("boundary", ENDS)
def test_a_reader_holds_one_document_however_long_the_file(boundary: str, tmp_path: Path) -> None:
    for length in (1 << 20, 3 << 20):
        peak, read_length = peak_of_reading(
            text_file(tmp_path / "a.txt", ENDS[boundary], length, boundary)
        )
        assert read_length > 0.8 * length
        assert peak < 1 << 20  # the start of the file, its lines, or a chunk of it


@pytest.mark.parametrize(
    ("boundary", "unit"),
    [
        *((boundary, "some words ") for boundary in ("blank-line", "line", "separator", "file")),
        *((boundary, "a b\n") for boundary in ("blank-line", "file")),
    ],
)
def test_a_text_without_ends_takes_a_few_times_the_longest_document(
    boundary: str, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That bounds the memory for `file`, too: a longer file is cut."""
    longest = 1 << 20
    monkeypatch.setattr(boundaries, "LONGEST", longest)
    file = text_file(tmp_path / "a.txt", unit, longest * 5 // 4, boundary)
    peak, read_length = peak_of_reading(file)
    assert read_length > 0.7 * file.size
    assert peak < 5 * longest + LINES_AT_A_TIME


def prepared(to: Path, source: Source) -> Path:
    run_share(Workspace(plan_preparation(DataConfig((source,), 0.1, 300, 0)), to))
    return to


@pytest.mark.parametrize(
    ("text", "boundary"),
    [(LINES, "line"), (LINES.replace("\n", SEPARATOR), "separator")],
    ids=["lines", "separator"],
)
def test_such_a_file_is_a_corpus_and_the_manifest_says_how_it_was_divided(
    text: str, boundary: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    folder = prepared(tmp_path / "out", Source("s", f"file://{path}", "s"))
    assert load(folder, 300, 64, "f").held_out_tokens > 64
    (source,) = read_manifest(folder)["sources"]
    assert source["documents"]["read"] == 400
    assert source["boundaries"] == {boundary: 1}


def test_a_chosen_boundary_is_used_for_every_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one\n\ntwo\nthree")
    report = ReadReport()

    def texts(**changes: str) -> Iterator[str]:
        source = Source("s", f"file://{tmp_path}", "s", **changes)
        for file in list_files(source):
            yield from (document.text for document in read(file, report))

    assert list(texts(documents="blank-line")) == ["one", "two\nthree"] * 2
    assert list(texts(documents="separator", separator="\n\n")) == ["one", "two\nthree"] * 2
    assert list(texts()) == ["one\n\ntwo\nthree"] * 2
    assert report.boundaries == {"blank-line": 2, "separator": 2, "file": 2}
