"""Boundaries between the documents of a text file: as chosen, or detected from its start.

A file is read once, and no more than one document of it is in memory. A document is at most
`LONGEST` characters long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from statistics import median
from typing import IO

SEPARATOR = "<|endoftext|>"
"""The separator that is detected, and the default of a source."""

PARAGRAPHS = 8192
"""Minimum characters of a run of paragraphs."""
LONGEST = 16 << 20
"""A document is cut at the end of a line, or of a word, after this many characters."""
LONGEST_RUN = 2 * PARAGRAPHS
"""The same for a run of paragraphs, in text without empty lines."""

SAMPLE = 256 << 10
"""Characters at the start of a file from which its boundaries are detected."""

_LEAST_LINES, _EMPTY_LINES, _SHORT_LINE = 4, 0.01, 40
_WIDEST_WRAP, _WRAPPED_LINES = 200, 0.5

_PIECE = 64 << 10
_BY_EMPTY_LINES = ("paragraphs", "blank-line")
_EMPTY_LINE_AT_END = re.compile(r"\n[^\S\n]*\n\Z")


def detect_boundary(sample: str, is_whole_source: bool) -> str:
    """Return the boundary of a file from its first `SAMPLE` characters.

    A file among others is one document, unless it contains the separator. The only file of a source
    is divided: by the separator; by lines if hardly any is empty and they are neither short nor
    wrapped; else into runs of paragraphs.
    """
    if SEPARATOR in sample:
        return "separator"
    if not is_whole_source:
        return "file"
    lines = sample.split("\n")
    if len(sample) >= SAMPLE and len(lines) > 1:
        lines.pop()  # the sample may end inside it
    count = len(lines) - (not lines[-1])
    lines = [line for line in lines if line.strip()]
    if len(lines) < _LEAST_LINES or count - len(lines) > _EMPTY_LINES * count:
        return "paragraphs"
    if median(map(len, lines)) < _SHORT_LINE or _is_wrapped(lines):
        return "paragraphs"
    return "line"


def _is_wrapped(lines: list[str]) -> bool:
    """Return True if most lines end where their next word would exceed the width of the text."""
    width = sorted(map(len, lines))[int(0.98 * (len(lines) - 1))]
    if width > _WIDEST_WRAP:
        return False
    full = sum(
        len(line) + 1 + len(after.split(maxsplit=1)[0]) > width for line, after in pairwise(lines)
    )
    return full >= _WRAPPED_LINES * (len(lines) - 1)


def split_documents(stream: IO[str], boundary: str, separator: str = SEPARATOR) -> Iterator[str]:
    """Yield the documents of a stream, without what separates them. Empty ones are left out."""
    pieces = _between(stream, separator) if boundary == "separator" else _lines(stream, boundary)
    limit = LONGEST_RUN if boundary == "paragraphs" else LONGEST
    held, size = StringIO(newline=""), 0
    for piece, ends in pieces:
        if not size and not piece.strip() and boundary in _BY_EMPTY_LINES:
            continue
        size += held.write(piece)
        if ends and (boundary != "paragraphs" or size >= PARAGRAPHS):
            yield from _whole(held.getvalue(), boundary)
            held, size = StringIO(newline=""), 0
        elif size >= limit:
            text = held.getvalue()
            place = _end_of_line_or_word(text)
            yield from _whole(text[:place], boundary)
            held = StringIO(newline="")
            size = held.write(text[place:])
    yield from _whole(held.getvalue(), boundary)


def _whole(text: str, boundary: str) -> Iterator[str]:
    if boundary in _BY_EMPTY_LINES:
        text = _EMPTY_LINE_AT_END.sub("", text)
    elif boundary == "line":
        text = text.removesuffix("\n")
    if text.strip():
        yield text


def _end_of_line_or_word(text: str) -> int:
    """Return where to cut a long text: in its second half, so that cutting is linear in time."""
    half = len(text) // 2
    return text.rfind("\n", half) + 1 or text.rfind(" ", half) + 1 or len(text)


def _lines(stream: IO[str], boundary: str) -> Iterator[tuple[str, bool]]:
    """Yield lines, in pieces if they are long, and whether a document may end after them."""
    starts = True  # the piece is the start of a line
    while piece := stream.readline(_PIECE):
        ends = piece.endswith("\n")
        if boundary == "line":
            yield piece, ends
        else:
            yield piece, boundary in _BY_EMPTY_LINES and starts and ends and not piece.strip()
        starts = ends


def _between(stream: IO[str], separator: str) -> Iterator[tuple[str, bool]]:
    """Yield the text between separators in pieces, and whether a separator follows."""
    rest = ""
    while chunk := stream.read(_PIECE):
        *whole, rest = (rest + chunk).split(separator)
        for part in whole:
            yield part, True
        certain = max(0, len(rest) - len(separator) + 1)  # a separator may begin after it
        yield rest[:certain], False
        rest = rest[certain:]
    yield rest, False
