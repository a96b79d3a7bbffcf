"""Reading what a user, a pod or a node wrote: text without control characters, JSON with limits."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_JSON_DEPTH = 32
"""Nested levels of JSON that are accepted. The documents of the pod contract have four."""


def printable(text: str) -> str:
    """Return text with a space in place of each character that is not printable.

    These are control characters, line breaks, marks that change the direction of text, and lone
    surrogates, which file names that are not UTF-8 have.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def printable_entry(text: str) -> str:
    """Return an entry of a log, whose further lines are indented: they cannot forge an entry."""
    return "\n  ".join(printable(line) for line in text.splitlines())


def printable_page(text: str) -> str:
    """Return text for a terminal, with its line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def read_json(text: str | bytes) -> Any:
    """Parse JSON. Return None if it is invalid or nested more deeply than MAX_JSON_DEPTH."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if is_nested_deeper(value, MAX_JSON_DEPTH - 1) else value


def is_count(value: Any) -> bool:
    """Return True for an integer from 0 that JSON numbers represent exactly: below 2^53."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_finite(value: Any) -> bool:
    """Return True for a finite number; integers of any size are finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Return True if a decoded value has more levels of objects and lists in it. No recursion."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            child
            for parent in layer
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not layer:
            return False
    return True
