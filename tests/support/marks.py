"""Whether `-m` can select a test of a file, from the text of the file.

pytest imports a file to learn its marks. All files together take 20 s of CPU time, in every process
of every tier, and most tiers need a few of them.
"""

from __future__ import annotations

import re
from itertools import chain, combinations

from _pytest.mark.expression import Expression

MARKS = frozenset(
    {
        "unit",
        "torch",
        "serial",
        "exhaustive",
        "cluster",
        "e2e",
        "perf",
        "prometheus",
        "kind",
        "readme",
    }
)
"""The marks of this project. Tests name them in their own file, as `pytest.mark.NAME`."""

_NAMED = re.compile(r"\bmark\.(\w+)")
_OF_FILE = re.compile(r"^pytestmark = (?:\[[^\]]*\]|.*)", re.MULTILINE)
_WORDS = re.compile(r"[^\s()]+")
_OPERATORS = {"and", "or", "not"}


def can_select(expression: str, text: str) -> bool:
    """Tell whether `-m expression` can select a test of a file with this text.

    Every test has the marks of `pytestmark`, and may have any others that the file names. An
    expression with a mark that is not of this project, such as that of a plugin, selects any file.
    """
    if not set(_WORDS.findall(expression)) - _OPERATORS <= MARKS:
        return True
    common = {mark for found in _OF_FILE.findall(text) for mark in _NAMED.findall(found)}
    others = sorted((set(_NAMED.findall(text)) & MARKS) - common)
    subsets = chain.from_iterable(combinations(others, size) for size in range(len(others) + 1))
    compiled = Expression.compile(expression)
    return any(compiled.evaluate(_Marks(common.union(some))) for some in subsets)


class _Marks(frozenset[str]):
    """Marks of a test, as an expression asks for them."""

    def __call__(self, name: str, /, **_: str | int | bool | None) -> bool:
        return name in self
