"""The CPU time in which text is read grows with its length."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import InputFile, ReadReport
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.readers.mediawiki import wiki_text

pytestmark = pytest.mark.perf

WORDS = "some words of a text that has no end "
LINE = WORDS * 2 + "\n"
ENDS = {
    "auto": LINE + WORDS + "\n\n",
    "blank-line": LINE + WORDS + "\n\n",
    "line": LINE,
    "separator": WORDS * 2 + "<|endoftext|>",
    "file": LINE,
}
"""A piece of text with an end of a document, by the boundary."""
SMALL = 4 << 20
LONG = 16 << 20
"""For documents of many MiB that are not read by lines: new memory costs more than reading."""
TIMES, MAX_RATIO = 4, 8.0
"""A quadratic time is 16 times as long. Measured: 3.5 to 6."""


def text_file(path: Path, unit: str, length: int, boundary: str) -> InputFile:
    path.write_text(unit * (length // len(unit)))
    (file,) = list_files(Source("s", f"file://{path}", "s", documents=boundary))
    return file


def cpu_seconds(file: InputFile) -> float:
    """Return the least CPU seconds of some readings."""
    found = []
    for _ in range(3):
        start = time.process_time()
        length = sum(len(document.text) for document in read(file, ReadReport()))
        found.append(time.process_time() - start)
        assert length > 0.8 * file.size
    return min(found)


@pytest.mark.parametrize("boundary", ENDS)
@pytest.mark.parametrize("text", ["with ends", "lines", "one line"])
def test_four_times_the_text_takes_about_four_times_as_long(
    text: str, boundary: str, tmp_path: Path
) -> None:
    unit = {"with ends": ENDS[boundary], "lines": LINE, "one line": WORDS}[text]
    by_lines = text == "with ends" or (text == "lines" and boundary != "separator")
    length = SMALL if by_lines else LONG
    small = cpu_seconds(text_file(tmp_path / "small.txt", unit, length, boundary))
    large = cpu_seconds(text_file(tmp_path / "large.txt", unit, TIMES * length, boundary))
    print(f"\n{boundary}, {text}: {small:.3f} s of a core, {TIMES} times as much {large:.3f} s")
    assert large < MAX_RATIO * small


def test_the_references_of_an_article_take_linear_time() -> None:
    """8,000 references took 11 seconds, because each was searched in the page to remove it."""

    def seconds(count: int) -> float:
        start = time.process_time()
        markup = "a <ref>b</ref> <code>c  d</code> [[File:e]]\n\n" * count
        assert wiki_text(markup).count("c  d") == count
        return time.process_time() - start

    small, large = (min(seconds(count) for _ in range(2)) for count in (500, TIMES * 500))
    assert large < MAX_RATIO * small
