"""Local search: swap two blocks, or move one to a free node, as long as that makes the job faster.

A change counts if the cost falls, or if it stays and the sum of squared link times falls: many
links are equally loaded, and relieving one of them does not show in the maximum yet. Large jobs
only try changes at the hottest links. The budget counts evaluations, never seconds, and the kicks
that leave a local optimum come from a seeded generator: equal input gives equal answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations

from llmtrain_core.placement.capacity import Rooms
from llmtrain_core.placement.cost import TIE, Congestion
from llmtrain_core.placement.flows import Blocks

SMALL = 24
"""Items up to which all pairs are tried."""
MEDIUM = 64
"""Blocks up to which all pairs are tried once the hottest links are as cool as they get."""
BY_KICK = 500
"""Moves of the budget of a small job for every kick that may fail in a row."""


class Descent:
    """Improves one assignment in place. An item is a block, or the blocks of one tensor group."""

    def __init__(self, congestion: Congestion, rooms: Rooms, budget: int):
        self.congestion = congestion
        self.budget = budget
        self.cells: list[int] = []
        """Cell of every block."""
        self._group = rooms.group
        self._item = (1 << rooms.group) - 1
        self._room = [room.fits for room in rooms.cells]
        self._kinds = [(room.path[:-1], room.uplink, room.fits) for room in rooms.cells]
        """Cells of a kind are interchangeable."""
        self._items = congestion.traffic.blocks // rooms.group
        self._kicks = budget // BY_KICK
        self._small = self._items <= SMALL
        self._medium = congestion.traffic.blocks <= MEDIUM
        self._price = 6 if congestion.wide and not self._medium else 1
        self._least = sum(congestion.base)
        self._now = (0.0, 0.0)
        self._touched: set[int] = set()
        """Cells whose pairs have not been tried since they last changed."""

    def start(self, cells: Sequence[int]) -> None:
        """Load an assignment."""
        self.congestion.put_all(cells)
        self.cells = list(cells)
        self._now = (self.congestion.seconds(), self.congestion.squares())
        self._touched = set(range(len(self._room)))

    def search(self, cells: Sequence[int], budget: int, kick: bool) -> list[int]:
        """Descend within a part of the budget and return where that ends.

        With `kick`, for jobs of up to `MEDIUM` blocks, kick and descend again as long as that
        helps, and return the best.
        """
        rest, self.budget = self.budget - budget, budget
        self.start(cells)
        generator = random.Random(self._items)
        best, found = self._descend(), list(self.cells)
        idle = 0
        while kick and idle < self._kicks and self.budget > 0 and best > self._least * (1 + TIE):
            self._kick(generator)
            cost = self._descend()
            idle += 1
            if cost < best * (1 - TIE):
                best, found, idle = cost, list(self.cells), 0
            elif cost > best * (1 + TIE):
                self.start(found)
                self._touched = set()
        self.budget += rest
        return found

    def _descend(self) -> float:
        """Take improving changes until there are none or the budget is spent; return the cost."""
        while self.budget > 0 and self._now[0] > self._least * (1 + TIE) and self._step():
            pass
        return self._now[0]

    def _step(self) -> bool:
        if self._small:
            return self._sweep()
        return self._cool() or (self._medium and self._sweep())

    def _sweep(self) -> bool:
        """Try all changes between pairs of cells, keeping every one that helps.

        Pairs of which neither has changed since it was tried are passed over: after a kick only its
        surroundings are searched. A change there can make them worth a try again, rarely.
        """
        helped = False
        touched, self._touched = self._touched, set()
        for cell, other in combinations(self._distinct(), 2):
            if touched.isdisjoint((cell, other)):
                continue
            while self._try(cell, other, self._changes(cell, other)):
                helped = True
        return helped

    def _cool(self) -> bool:
        """Make the first change at the hottest links that helps."""
        return any(self._try(cell, other, changes) for cell, other, changes in self._hot())

    def _try(self, cell: int, other: int, changes: Sequence[Blocks]) -> bool:
        """Exchange the first set of blocks between two cells that helps."""
        if self.budget <= 0:
            return False
        self.budget -= self._price * len(changes)
        cost, squares = self._now
        for blocks in self.congestion.promising(cell, other, changes, cost):
            self.congestion.exchange(cell, other, blocks)
            seconds = self.congestion.seconds()
            if seconds <= cost * (1 + TIE):
                now = self.congestion.squares()
                if seconds < cost * (1 - TIE) or now < squares * (1 - TIE):
                    self._write(cell, other, blocks)
                    self._now = (seconds, now)
                    return True
            self.congestion.exchange(cell, other, blocks)
        return False

    def _write(self, cell: int, other: int, blocks: Blocks) -> None:
        """Write down where exchanged blocks are now."""
        self._touched |= {cell, other}
        for item in self._split(blocks):
            first = item.bit_length() - self._group
            new = other if self.cells[first] == cell else cell
            self.cells[first : first + self._group] = [new] * self._group

    def _split(self, blocks: Blocks) -> Iterator[Blocks]:
        """Yield the items in a set of blocks."""
        while blocks:
            item = (blocks & -blocks) * self._item
            yield item
            blocks ^= item

    def _changes(self, cell: int, other: int) -> list[Blocks]:
        """Return all swaps and moves between two cells, and the exchange of all that they hold."""
        here, there = self.congestion.sitting(cell), self.congestion.sitting(other)
        mine, theirs = list(self._split(here)), list(self._split(there))
        changes = [item | far for item in mine for far in theirs]
        if self._open(cell):
            changes += theirs
        if self._open(other):
            changes += mine
        return [*changes, *self._whole(cell, other)]

    def _open(self, cell: int) -> bool:
        return self.congestion.sitting(cell).bit_count() < self._room[cell]

    def _whole(self, cell: int, other: int) -> list[Blocks]:
        """Return the exchange of all that two cells hold, if there is room."""
        here, there = self.congestion.sitting(cell), self.congestion.sitting(other)
        fits = here.bit_count() <= self._room[other] and there.bit_count() <= self._room[cell]
        return [here | there] if fits else []

    def _hot(self) -> Iterator[tuple[int, int, list[Blocks]]]:
        """Yield changes that take an edge off one of the hottest links."""
        for domain, kind in self._hottest():
            held = self.congestion.held[domain]
            for item in self._split(held):
                here = self._cell(item)
                for far in self._partners(item, held, kind):
                    there = self._cell(far)
                    moves = [*[item][: self._open(there)], *[far][: self._open(here)]]
                    swaps = [item | other for other in self._split(self.congestion.sitting(there))]
                    swaps += [far | other for other in self._split(self.congestion.sitting(here))]
                    yield here, there, moves + swaps
            cells = self._distinct()
            for cell in sorted({self._cell(item) for item in self._split(held)}):
                for other in cells:
                    if other != cell:
                        yield cell, other, self._whole(cell, other)

    def _distinct(self) -> list[int]:
        """Return the cells but those that are as empty as another one just like them."""
        seen: set[object] = set()
        found = []
        for cell, kind in enumerate(self._kinds):
            if not self.congestion.sitting(cell):
                if kind in seen:
                    continue
                seen.add(kind)
            found.append(cell)
        return found

    def _cell(self, item: Blocks) -> int:
        return self.cells[item.bit_length() - 1]

    def _hottest(self) -> list[tuple[int, int]]:
        """Return (domain, kind) of the most loaded uplink of every kind above its least."""
        congestion, domains = self.congestion, len(self.congestion.held)
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

    def _kick(self, generator: random.Random) -> None:
        """Swap two pairs of items and move one to a free node, whatever it costs."""
        for _ in range(2):
            item, other = (self._draw(generator) for _ in range(2))
            self._force(self._cell(item), self._cell(other), item | other)
        open_ = [cell for cell in range(len(self._room)) if self._open(cell)]
        if open_:
            item = self._draw(generator)
            self._force(self._cell(item), generator.choice(open_), item)
        self._now = (self.congestion.seconds(), self.congestion.squares())

    def _draw(self, generator: random.Random) -> Blocks:
        return self._item << generator.randrange(self._items) * self._group

    def _force(self, cell: int, other: int, blocks: Blocks) -> None:
        if cell != other:
            self.congestion.exchange(cell, other, blocks)
            self._write(cell, other, blocks)
