"""Choose a few of many cases so that every pair of factor values stays covered.

Faults show in the combination of two choices (a schedule with a shape, a degree with a precision)
far more often than in that of three. `make test` runs the chosen cases, other targets run all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

C = TypeVar("C")
Factors = Mapping[str, object]
Pair = tuple[tuple[str, object], tuple[str, object]]


def pairs(factors: Factors) -> frozenset[Pair]:
    """Return all pairs of values of two factors, and so each value."""
    return frozenset(combinations(sorted(factors.items()), 2))


def pairwise(
    cases: Sequence[C], factors: Callable[[C], Factors], cost: Callable[[C], float]
) -> list[C]:
    """Return cases, in their order, that cover every pair of values that any case covers.

    Greedy and deterministic: each step takes the case with the most new pairs for its cost to the
    power of 1/4, the first of equals. At the end, cases whose pairs the others cover are left out.
    """
    covers = {index: pairs(factors(case)) for index, case in enumerate(cases)}
    chosen: list[int] = []
    missing = set().union(*covers.values())
    while missing:
        best = max(covers, key=lambda i: len(covers[i] & missing) / cost(cases[i]) ** 0.25)
        chosen.append(best)
        missing -= covers[best]
    for index in sorted(chosen, key=lambda i: -cost(cases[i])):
        if covers[index] <= covered(covers[other] for other in chosen if other != index):
            chosen.remove(index)
    return [cases[index] for index in sorted(chosen)]


def covered(sets: Iterable[frozenset[Pair]]) -> frozenset[Pair]:
    """Return the pairs of all sets."""
    return frozenset().union(*sets)
