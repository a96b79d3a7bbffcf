"""Local search: swap two blocks or move one to a free node while that lowers the cost.

A change is accepted if the cost falls, or if the cost stays equal and the sum of squared link times
falls: several links may be equally loaded, and relieving one of them does not lower the maximum.
Large jobs only try changes at the busiest links. The budget counts evaluations, not seconds, and
the perturbations that leave a local optimum use a seeded generator, so results are deterministic.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations

from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.cost import TIE, Congestion
from llmtrain_core.placement.traffic.flows import Blocks

SMALL = 24
"""Jobs with at most this many items try all pairs."""
MEDIUM = 64
"""Jobs with at most this many blocks try all pairs after changes at the busiest links."""
MOVES_PER_PERTURBATION = 500
"""The search stops after (budget / this) perturbations in a row without an improvement."""


class LocalSearch:
    """Improves an assignment in place. An item is a block, or the blocks of one tensor group."""

    def __init__(self, congestion: Congestion, capacity: CapacityTree, budget: int):
        self.congestion = congestion
        self.budget = budget
        self.leaves: list[int] = []
        """Leaf domain of every block."""
        self._group = capacity.group
        self._item = (1 << capacity.group) - 1
        self._limits = [0] * len(congestion.link_index.leaves)
        for domain in capacity.leaves:
            self._limits[domain.leaf] = domain.fits
        self._kinds = [(d.leaf, (d.path[:-1], d.uplink, d.fits)) for d in capacity.leaves]
        """Leaf domains to use. Empty ones of equal kind are interchangeable."""
        self._items = congestion.traffic.blocks // capacity.group
        self._perturbations = budget // MOVES_PER_PERTURBATION
        self._small = self._items <= SMALL
        self._medium = congestion.traffic.blocks <= MEDIUM
        self._price = 6 if congestion.wide and not self._medium else 1
        self._least = sum(congestion.base)
        self._now = (0.0, 0.0)
        self._touched: set[int] = set()
        """Leaf domains whose pairs have not been tried since they last changed."""

    def start(self, leaves: Sequence[int]) -> None:
        """Load an assignment."""
        self.congestion.assign_all(leaves)
        self.leaves = list(leaves)
        self._now = (self.congestion.seconds(), self.congestion.sum_of_squares())
        self._touched = set(range(len(self._limits)))

    def search(self, leaves: Sequence[int], budget: int, perturb: bool) -> list[int]:
        """Descend within a part of the budget and return the resulting assignment.

        With `perturb`, for jobs of up to `MEDIUM` blocks, perturb and descend again while that
        helps, and return the best assignment.
        """
        rest, self.budget = self.budget - budget, budget
        self.start(leaves)
        generator = random.Random(self._items)
        best, found = self._descend(), list(self.leaves)
        idle = 0
        while (
            perturb
            and idle < self._perturbations
            and self.budget > 0
            and best > self._least * (1 + TIE)
        ):
            self._perturb(generator)
            cost = self._descend()
            idle += 1
            if cost < best * (1 - TIE):
                best, found, idle = cost, list(self.leaves), 0
            elif cost > best * (1 + TIE):
                self.start(found)
                self._touched = set()
        self.budget += rest
        return found

    def _descend(self) -> float:
        """Apply improving changes until none is left or the budget is spent. Return the cost."""
        while self.budget > 0 and self._now[0] > self._least * (1 + TIE) and self._step():
            pass
        return self._now[0]

    def _step(self) -> bool:
        if self._small:
            return self._sweep()
        return self._improve_busiest() or (self._medium and self._sweep())

    def _sweep(self) -> bool:
        """Try all changes between pairs of leaf domains, and keep those that help.

        Skip pairs of which neither has changed since the last try, so that after a perturbation
        only the changed domains are searched. This rarely misses an improvement.
        """
        helped = False
        touched, self._touched = self._touched, set()
        for leaf, other in combinations(self._distinct(), 2):
            if touched.isdisjoint((leaf, other)):
                continue
            while self._try(leaf, other, self._changes(leaf, other)):
                helped = True
        return helped

    def _improve_busiest(self) -> bool:
        """Apply the first change at the busiest links that helps."""
        return any(
            self._try(leaf, other, changes) for leaf, other, changes in self._busiest_changes()
        )

    def _try(self, leaf: int, other: int, changes: Sequence[Blocks]) -> bool:
        """Exchange the first set of blocks between two leaf domains that lowers the cost."""
        if self.budget <= 0:
            return False
        self.budget -= self._price * len(changes)
        cost, squares = self._now
        for blocks in self.congestion.improving_swaps(leaf, other, changes, cost):
            self.congestion.exchange(leaf, other, blocks)
            seconds = self.congestion.seconds()
            if seconds <= cost * (1 + TIE):
                now = self.congestion.sum_of_squares()
                if seconds < cost * (1 - TIE) or now < squares * (1 - TIE):
                    self._write(leaf, other, blocks)
                    self._now = (seconds, now)
                    return True
            self.congestion.exchange(leaf, other, blocks)
        return False

    def _write(self, leaf: int, other: int, blocks: Blocks) -> None:
        """Record the leaf domains of exchanged blocks."""
        self._touched |= {leaf, other}
        for item in self._split(blocks):
            first = item.bit_length() - self._group
            new = other if self.leaves[first] == leaf else leaf
            self.leaves[first : first + self._group] = [new] * self._group

    def _split(self, blocks: Blocks) -> Iterator[Blocks]:
        """Yield the items in a set of blocks."""
        while blocks:
            item = (blocks & -blocks) * self._item
            yield item
            blocks ^= item

    def _changes(self, leaf: int, other: int) -> list[Blocks]:
        """Return all swaps and moves between two leaf domains, and the exchange of all blocks."""
        here, there = self.congestion.blocks_in(leaf), self.congestion.blocks_in(other)
        mine, theirs = list(self._split(here)), list(self._split(there))
        changes = [item | far for item in mine for far in theirs]
        if self._has_space(leaf):
            changes += theirs
        if self._has_space(other):
            changes += mine
        return [*changes, *self._whole(leaf, other)]

    def _has_space(self, leaf: int) -> bool:
        return self.congestion.blocks_in(leaf).bit_count() < self._limits[leaf]

    def _whole(self, leaf: int, other: int) -> list[Blocks]:
        """Return the exchange of all blocks of two leaf domains, if they fit."""
        here, there = self.congestion.blocks_in(leaf), self.congestion.blocks_in(other)
        fits = here.bit_count() <= self._limits[other] and there.bit_count() <= self._limits[leaf]
        return [here | there] if fits else []

    def _busiest_changes(self) -> Iterator[tuple[int, int, list[Blocks]]]:
        """Yield changes that remove an edge from one of the busiest links."""
        for domain, kind in self._busiest_uplinks():
            held = self.congestion.domain_blocks[domain]
            for item in self._split(held):
                here = self._cell(item)
                for far in self._partners(item, held, kind):
                    there = self._cell(far)
                    moves = [*[item][: self._has_space(there)], *[far][: self._has_space(here)]]
                    swaps = [
                        item | other for other in self._split(self.congestion.blocks_in(there))
                    ]
                    swaps += [far | other for other in self._split(self.congestion.blocks_in(here))]
                    yield here, there, moves + swaps
            leaves = self._distinct()
            for leaf in sorted({self._cell(item) for item in self._split(held)}):
                for other in leaves:
                    if other != leaf:
                        yield leaf, other, self._whole(leaf, other)

    def _distinct(self) -> list[int]:
        """Return the leaf domains without duplicates among empty ones of equal kind."""
        seen: set[object] = set()
        found = []
        for leaf, kind in self._kinds:
            if not self.congestion.blocks_in(leaf):
                if kind in seen:
                    continue
                seen.add(kind)
            found.append(leaf)
        return found

    def _cell(self, item: Blocks) -> int:
        return self.leaves[item.bit_length() - 1]

    def _busiest_uplinks(self) -> list[tuple[int, int]]:
        """Return (domain, kind) of the most loaded uplink of every kind above its least."""
        congestion, domains = self.congestion, len(self.congestion.domain_blocks)
        found = []
        for kind, times in enumerate(congestion.by_kind()):
            top = max(times)
            if top <= congestion.base[kind] * (1 + TIE):
                continue
            link = times.index(top)
            if link < domains:
                found.append((top, link, kind))
        return [(domain, kind) for _, domain, kind in sorted(found, reverse=True)]

    def _partners(self, item: Blocks, held: Blocks, kind: int) -> list[Blocks]:
        """Return the items outside a set that exchange a kind of traffic with one inside."""
        adjacent = self.congestion.traffic.adjacent
        first = item.bit_length() - self._group
        others = {
            edge[0] // self._group
            for block in range(first, first + self._group)
            for edge in adjacent[block]
            if edge[1] == kind
        }
        items = [self._item << other * self._group for other in sorted(others)]
        return [other for other in items if not other & held]

    def _perturb(self, generator: random.Random) -> None:
        """Swap two random pairs of items and move one item to a free node, at any cost."""
        for _ in range(2):
            item, other = (self._random_item(generator) for _ in range(2))
            self._exchange(self._cell(item), self._cell(other), item | other)
        open_ = [leaf for leaf in range(len(self._limits)) if self._has_space(leaf)]
        if open_:
            item = self._random_item(generator)
            self._exchange(self._cell(item), generator.choice(open_), item)
        self._now = (self.congestion.seconds(), self.congestion.sum_of_squares())

    def _random_item(self, generator: random.Random) -> Blocks:
        return self._item << generator.randrange(self._items) * self._group

    def _exchange(self, leaf: int, other: int, blocks: Blocks) -> None:
        if leaf != other:
            self.congestion.exchange(leaf, other, blocks)
            self._write(leaf, other, blocks)
