"""Narration: each step of a test is a line with its time, so that a log reads as a story."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is done, and how long it took or that it failed."""
    started = time.monotonic()
    _print(f"  {what} ...")
    try:
        yield
    except BaseException:
        _print(f"  {what}: FAILED after {time.monotonic() - started:.1f} s")
        raise
    _print(f"  {what}: {time.monotonic() - started:.1f} s")


def becomes(read: Callable[[], object], wanted: object, seconds: float = 60) -> None:
    """Wait until a reading is as wanted: the garbage collector works in the background."""
    deadline = time.monotonic() + seconds
    while (found := read()) != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == wanted


def _print(line: str) -> None:
    # Not the captured output: a tier that takes minutes must show where it is.
    print(line, file=sys.__stderr__, flush=True)
