"""Choose a few of many cases so that everything of a kind that any case covers stays covered.

With pairs of choices as that kind: faults show in the combination of two choices (a schedule with a
shape, a degree with a precision) far more often than in that of three. `make test` runs the chosen
cases, `make parity` runs all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

import pytest

C = TypeVar("C")


def pairs(choices: Mapping[str, object]) -> frozenset[object]:
    """Return all pairs of choices by name and value, and so each value."""
    return frozenset(combinations(sorted(choices.items()), 2))


def cover(
    cases: Sequence[C], items: Callable[[C], frozenset[object]], cost: Callable[[C], float]
) -> list[C]:
    """Return cases, in their order, that cover every item that any case covers.

    Greedy and deterministic: each step takes the case with the most new items for its cost to the
    power of 2/5, the first of equals. At the end, cases whose items the others cover are left out.
    """
    covers = {index: items(case) for index, case in enumerate(cases)}
    chosen: list[int] = []
    missing = union(covers.values())
    while missing:
        best = max(covers, key=lambda i: len(covers[i] & missing) / cost(cases[i]) ** 0.4)
        chosen.append(best)
        missing -= covers[best]
    for index in sorted(chosen, key=lambda i: -cost(cases[i])):
        if covers[index] <= union(covers[other] for other in chosen if other != index):
            chosen.remove(index)
    return [cases[index] for index in sorted(chosen)]


def union(sets: Iterable[frozenset[object]]) -> frozenset[object]:
    """Return the items of all sets."""
    return frozenset().union(*sets)


def selected(request: pytest.FixtureRequest, test: str) -> list[dict[str, Any]]:
    """Return the parameters of a test of the fixture's module that this run has selected."""
    return [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test
        and item.path == request.node.path
    ]
