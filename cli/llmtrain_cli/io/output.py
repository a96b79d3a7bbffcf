"""How results are printed: JSON for programs, plain text of 80 columns for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from enum import StrEnum
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain_core.api.untrusted import printable_page

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80
BAR = 24


class Output(StrEnum):
    """The format of a result."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="text or json")]


def show(data: Any, text: str, output: Output) -> None:
    """Print a result as JSON or as text."""
    echo(json.dumps(data, indent=2) if output is Output.JSON else text)


def echo(text: str, *, err: bool = False) -> None:
    """Print text without control characters: names of files and of objects may have them."""
    typer.echo(printable_page(text), err=err)


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the entry without control characters."""
        return printable_page(super().format(record))


def format_warnings() -> None:
    """Print warnings without control characters: they have names of files."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_TerminalFormatter())


def render(part: RenderableType) -> str:
    """Render a table or tree as plain text of 80 columns."""
    from rich.console import Console

    console = Console(width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def bar(value: float, whole: float, width: int = BAR, sign: str = "#") -> str:
    """Draw a bar of the share of the whole. Positive values have at least one character."""
    return sign * max(1, round(width * min(1.0, value / whole))) if value > 0 < whole else ""


def bullets(sentences: Sequence[str]) -> Iterator[str]:
    """Wrap sentences as list items."""
    for sentence in sentences:
        yield from wrap(sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def seconds_text(seconds: float) -> str:
    """Format a duration in seconds, milliseconds or microseconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"
