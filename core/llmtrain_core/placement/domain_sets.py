"""Choose sets of leaf domains for a job: the fewest far domains, then the fewest near ones.

A set of k domains is the fewest if no k - 1 of the same parents hold the job. So the choice is made
level by level from far to near: among the fewest domains of a level, the fewest domains below them.
The choice is exact while no level has more than `BEAM` distinct choices. The leaf domains of equal
number are compared by their footprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice

from llmtrain_core.placement.capacity import NOT_A_LEAF, CapacityTree, DomainCapacity
from llmtrain_core.placement.footprint import Counts, Footprint, FootprintModel, cheapest_counts
from llmtrain_core.placement.tree import Path

BEAM = 48
"""Choices that are kept of each level above the leaf."""
LEAVES_COMPARED = 2048
"""Leaf domains in all sets that are compared."""
MAX_DIVISIONS = 600
"""Small jobs, with at most this many divisions over leaf domains, try all divisions."""

Chosen = tuple[DomainCapacity, ...]


@dataclass(frozen=True, slots=True)
class DomainSet:
    """Leaf domains that hold a job together."""

    footprint: Footprint
    stranded: tuple[int, ...]
    """Free nodes left in the domains of the job, from near to far."""
    limits: Counts
    """Maximum number of blocks of each leaf domain."""

    @property
    def score(self) -> tuple[object, ...]:
        """Lower is better."""
        return self.footprint, self.stranded, tuple(sorted(self.limits.items()))

    def even(self, nodes: int, unit: int) -> DomainSet:
        """Return the set with limits so low that the job is spread evenly over all of it."""
        limit = unit
        while sum(min(limit, most) for most in self.limits.values()) < nodes:
            limit += unit
        limits = {leaf: min(limit, most) for leaf, most in self.limits.items()}
        return replace(self, limits=limits)


class DomainChoice:
    """The search for the sets of leaf domains of one job."""

    def __init__(
        self,
        capacity: CapacityTree,
        model: FootprintModel,
        nodes: int,
        spares: int,
        max_depth: int,
    ):
        """`max_depth` is the length of the path of the widest domain that the job may use."""
        self.capacity = capacity
        self.model = model
        self.nodes = nodes
        self.spares = spares
        self.levels = len(capacity.leaves[0].path)
        self.max_depth = min(max_depth, self.levels)
        self._unit = capacity.group if capacity.depth >= self.levels else 1
        self._numbers: dict[object, int] = {}
        self._kinds: dict[Path, int] = {}
        """Domains of one kind are interchangeable if they have the same parent."""
        self._number_kinds(capacity.root)

    def fewest(self, leaves: int = 1) -> list[DomainSet]:
        """Return the sets with the fewest domains, lowest footprint first.

        They have at least `leaves` leaf domains, if there are so many.
        """
        chosen: list[Chosen] = [(domain,) for domain in self._outer()]
        for _ in range(self.max_depth, self.levels - 1):
            chosen = self._below(chosen, leaves)
        if self.max_depth < self.levels:
            chosen = list(dict.fromkeys(self._leaf_sets(chosen, leaves)))
        return sorted(map(self._set, chosen), key=lambda found: found.score)

    def divisions(self) -> list[DomainSet] | None:
        """Return all divisions of a small job, lowest footprint first; None if there are many."""
        if self.capacity.group > 1 and self.capacity.depth < self.levels:
            return None
        counted = [
            counts
            for outer in self._outer()
            for counts in islice(self._divide(_leaves_of(outer)), MAX_DIVISIONS + 1)
        ]
        if len(counted) > MAX_DIVISIONS:
            return None
        found = [DomainSet(*self.model.of(counts), counts) for counts in counted]
        return sorted(found, key=lambda division: division.score)

    def _outer(self) -> list[DomainCapacity]:
        """Return the widest domains that hold the job with its spares."""
        wanted = self.nodes + self.spares
        outer = self.capacity.at(self.max_depth)
        return [d for d in outer if d.fits >= self.nodes and d.free >= wanted]

    def _below(self, chosen: Sequence[Chosen], leaves: int) -> list[Chosen]:
        """Return the fewest children of each choice that hold the job, best first."""
        found: dict[Chosen, tuple[object, ...]] = {}
        for domains in chosen:
            pool = [child for domain in domains for child in domain.children]
            size = _fewest(pool, self.nodes)
            if leaves > 1:
                counts = [len(_leaves_of(child)) for child in _largest(pool, len(pool))]
                sums = enumerate(accumulate(counts), 1)
                size = max(size, next((n for n, total in sums if total >= leaves), len(pool)))
            subsets = self._subsets(pool, size, self.nodes)
            for subset in islice(subsets, _limit(size, len(pool), len(chosen))):
                free = sum(child.free for child in subset) - self.nodes
                outside = max(0, self.spares - free)
                broken = sum(child.whole for child in subset)
                found[subset] = (size, outside, broken, free)
        least = min(key[:2] for key in found.values())
        kept = [subset for subset, key in found.items() if key[:2] == least]
        return sorted(kept, key=lambda subset: found[subset])[:BEAM]

    def _leaf_sets(self, chosen: Sequence[Chosen], leaves: int) -> Iterator[Chosen]:
        """Yield sets of leaf domains below the choices, with as few whole ones as possible."""
        pools = [[leaf for domain in domains for leaf in domain.children] for domains in chosen]
        sizes = [self._size(pool) for pool in pools]
        least = min(sizes)
        best = [pool for pool, size in zip(pools, sizes, strict=True) if size == least]
        for pool in best:
            size = min(len(pool), max(least, leaves))
            yield from self._sets_of(pool, size, _limit(size, len(pool), len(best)))

    def _sets_of(self, pool: Sequence[DomainCapacity], size: int, limit: int) -> list[Chosen]:
        """Return sets of some size. Where tensor groups span leaf domains, not all sets hold."""
        for number in range(self._fewest_whole(pool, size), size + 1):
            sets = islice(self._with_whole(pool, size, number), limit)
            found = [leaves for leaves in sets if self._holds(leaves)]
            if found:
                return found
        return [_largest(pool, size)]

    def _size(self, pool: Sequence[DomainCapacity]) -> int:
        """Return the least number of leaf domains that hold the job."""
        size = _fewest(pool, self.nodes)
        while size < len(pool) and not self._holds(_largest(pool, size)):
            size += 1  # tensor groups span leaf domains
        return size

    def _fewest_whole(self, pool: Sequence[DomainCapacity], size: int) -> int:
        """Return how many leaf domains of a set must be whole ones."""
        least = self._least(pool, size)
        whole, partly = _by_use(pool)
        for number in range(max(0, size - len(partly)), min(size, len(whole)) + 1):
            leaves = (*_largest(whole, number), *_largest(partly, size - number))
            if sum(leaf.fits for leaf in leaves) >= least:
                return number
        return size

    def _with_whole(
        self, pool: Sequence[DomainCapacity], size: int, number: int
    ) -> Iterator[Chosen]:
        """Yield the sets of a size with a number of whole leaf domains."""
        least = self._least(pool, size)
        whole, partly = _by_use(pool)
        some = _room(_largest(whole, number))
        for first in self._subsets(partly, size - number, least - some):
            for second in self._subsets(whole, number, least - _room(first)):
                yield (*first, *second)

    def _least(self, pool: Sequence[DomainCapacity], size: int) -> int:
        """Return the room that a set needs for the job and as many of its spares as possible."""
        if self.capacity.group > 1:
            return self.nodes
        return max(self.nodes, min(self.nodes + self.spares, _room(_largest(pool, size))))

    def _holds(self, leaves: Chosen) -> bool:
        """Whether leaf domains hold the job together; fewer blocks where groups span them."""
        if self.capacity.group == 1 or self.capacity.depth >= self.levels:
            return _room(leaves) >= self.nodes
        limits = {leaf.leaf: leaf.fits for leaf in leaves}
        return self.capacity.restricted(limits).root.fits >= self.nodes

    def _set(self, leaves: Chosen) -> DomainSet:
        limits = {leaf.leaf: leaf.fits for leaf in sorted(leaves, key=lambda d: d.leaf)}
        counts, limits = cheapest_counts(self.model, limits, self.nodes, self._unit)
        return DomainSet(*self.model.of(counts), limits)

    def _divide(self, leaves: Sequence[DomainCapacity]) -> Iterator[dict[int, int]]:
        """Yield the divisions of the job over leaf domains; of equal ones, the first gets most."""
        unit = self._unit
        rooms = [*accumulate([leaf.fits for leaf in reversed(leaves)], initial=0)][::-1]
        equal = [
            index > 0 and self._alike(leaves[index - 1], leaf) for index, leaf in enumerate(leaves)
        ]

        def walk(index: int, left: int, before: int) -> Iterator[dict[int, int]]:
            if not left:
                yield {}
                return
            if rooms[index] < left:
                return
            most = min(left, leaves[index].fits, before if equal[index] else left)
            for count in range(most, -1, -unit):
                for rest in walk(index + 1, left - count, count):
                    yield {leaves[index].leaf: count, **rest} if count else rest

        return walk(0, self.nodes, self.nodes)

    def _number_kinds(self, domain: DomainCapacity) -> int:
        """Number the kinds of a domain and of all below it."""
        below = sorted(self._number_kinds(child) for child in domain.children)
        left = self.model.gpus_left[domain.leaf] if domain.leaf != NOT_A_LEAF else ()
        kind = (domain.fits, domain.free, domain.whole, domain.uplink, left, tuple(below))
        number = self._kinds[domain.path] = self._numbers.setdefault(kind, len(self._numbers))
        return number

    def _alike(self, one: DomainCapacity, other: DomainCapacity) -> bool:
        return one.path[:-1] == other.path[:-1] and self._kinds[one.path] == self._kinds[other.path]

    def _subsets(self, pool: Sequence[DomainCapacity], size: int, least: int) -> Iterator[Chosen]:
        """Yield the subsets of a size that hold `least` blocks, those of large domains first.

        Of subsets that differ only in interchangeable domains, yield one.
        """
        ranked = sorted(pool, key=lambda d: (-d.fits, self._kinds[d.path]))
        sums = [*accumulate([domain.fits for domain in ranked], initial=0)]

        def walk(start: int, size: int, least: int) -> Iterator[Chosen]:
            if not size:
                if least <= 0:
                    yield ()
                return
            for index in range(start, len(ranked) - size + 1):
                if sums[index + size] - sums[index] < least:
                    return  # the largest that are left do not suffice
                if index > start and self._alike(ranked[index - 1], ranked[index]):
                    continue
                for rest in walk(index + 1, size - 1, least - ranked[index].fits):
                    yield (ranked[index], *rest)

        return walk(0, size, least)


def _limit(size: int, pool: int, choices: int) -> int:
    """Return how many sets of a size are compared for one of some choices."""
    return pool if size == 1 else max(1, LEAVES_COMPARED // size // choices)


def _leaves_of(domain: DomainCapacity) -> list[DomainCapacity]:
    return [found for found in domain.walk() if found.leaf != NOT_A_LEAF]


def _by_use(pool: Sequence[DomainCapacity]) -> tuple[list[DomainCapacity], list[DomainCapacity]]:
    """Divide leaf domains into whole ones and others."""
    return [leaf for leaf in pool if leaf.whole], [leaf for leaf in pool if not leaf.whole]


def _room(leaves: Sequence[DomainCapacity]) -> int:
    return sum(leaf.fits for leaf in leaves)


def _largest(pool: Sequence[DomainCapacity], size: int) -> Chosen:
    return tuple(sorted(pool, key=lambda d: -d.fits)[:size])


def _fewest(pool: Sequence[DomainCapacity], nodes: int) -> int:
    """Return the least number of domains that hold some blocks."""
    sums = accumulate(sorted((domain.fits for domain in pool), reverse=True))
    return next((size for size, fits in enumerate(sums, 1) if fits >= nodes), len(pool))
