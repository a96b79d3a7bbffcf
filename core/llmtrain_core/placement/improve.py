"""Local search: swap two blocks, or move one to a free node, as long as that makes the job faster.

A change counts if the cost falls, or if it stays and the sum of squared link times falls: many
links are equally loaded, and relieving one of them does not show in the maximum yet. Large jobs
only try changes at the hottest links. The budget counts evaluations, never seconds, and the kicks
that leave a local optimum come from a seeded generator: equal input gives equal answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from llmtrain_core.placement.cost import Congestion
from llmtrain_core.placement.rooms import Rooms

SMALL = 24
"""Items up to which all pairs are tried."""
TIE = 1e-9
"""Relative difference below which two costs are the same."""
KICKS_WITHOUT_GAIN = 30
"""Kicks of a small job that may fail in a row."""

Change = list[tuple[int, int]]
"""Items and their new cells."""


class Descent:
    """Improves one assignment in place. An item is a block, or the blocks of one tensor group."""

    def __init__(self, congestion: Congestion, rooms: Rooms, budget: int):
        self.congestion = congestion
        self.items = [
            tuple(range(first, first + rooms.group))
            for first in range(0, congestion.traffic.blocks, rooms.group)
        ]
        self.room = [room.fits // rooms.group for room in rooms.cells]
        self.left = list(self.room)
        self.budget = budget
        self._small = len(self.items) <= SMALL
        self._least = sum(congestion.base)
        self._now = (0.0, 0.0)

    def cell(self, item: int) -> int:
        """Return where an item is."""
        return self.congestion.cells[self.items[item][0]]

    def start(self, cells: Sequence[int]) -> None:
        """Load an assignment."""
        self.congestion.put_all(cells)
        self.left = list(self.room)
        for item in range(len(self.items)):
            self.left[self.cell(item)] -= 1
        self._now = (self.congestion.seconds(), self.congestion.squares())

    def descend(self) -> float:
        """Take improving changes until there are none or the budget is spent; return the cost."""
        while self.budget > 0 and self._now[0] > self._least * (1 + TIE):
            if not self._step():
                break
        return self._now[0]

    def search(self) -> tuple[float, list[int]]:
        """Descend, then kick and descend again; return the best cost and its assignment."""
        generator = random.Random(len(self.items))
        best = self.descend()
        cells = list(self.congestion.cells)
        idle = 0
        kicks = KICKS_WITHOUT_GAIN if self._small else 0
        while idle < kicks and self.budget > 0 and best > self._least * (1 + TIE):
            self._kick(generator)
            cost = self.descend()
            idle += 1
            if cost < best * (1 - TIE):
                best, cells, idle = cost, list(self.congestion.cells), 0
            elif cost > best * (1 + TIE):
                self.start(cells)
        return best, cells

    def _step(self) -> bool:
        """Go once through the neighbourhood, keeping every change that helps."""
        helped = False
        for change in self._all() if self._small else self._hot():
            if self.budget <= 0:
                break
            if self._try(change):
                helped = True
                if not self._small:
                    return True
        return helped

    def _try(self, change: Change) -> bool:
        """Make a change, and take it back unless it helps."""
        origins = [(item, self.cell(item)) for item, _ in change]
        if origins == change or not self._apply(change):
            return False
        self.budget -= len(change)
        seconds, (cost, squares) = self.congestion.seconds(), self._now
        if seconds <= cost * (1 + TIE):
            now = self.congestion.squares()
            if seconds < cost * (1 - TIE) or now < squares * (1 - TIE):
                self._now = (seconds, now)
                return True
        self._apply(origins)
        return False

    def _apply(self, change: Change) -> bool:
        """Bring items to new cells; False, and nothing done, where there is no room."""
        left = self.left
        for item, cell in change:
            left[self.cell(item)] += 1
            left[cell] -= 1
        if any(left[cell] < 0 for _, cell in change):
            for item, cell in change:
                left[self.cell(item)] -= 1
                left[cell] += 1
            return False
        for item, _ in change:
            for block in self.items[item]:
                self.congestion.lift(block)
        for item, cell in change:
            for block in self.items[item]:
                self.congestion.put(block, cell)
        return True

    def _swap(self, item: int, other: int) -> Change:
        return [(item, self.cell(other)), (other, self.cell(item))]

    def _all(self) -> Iterator[Change]:
        """Yield all swaps, all moves, and all exchanges of what two cells hold."""
        count, cells = len(self.items), range(len(self.left))
        for item in range(count):
            for other in range(item + 1, count):
                if self.cell(item) != self.cell(other):
                    yield self._swap(item, other)
            for cell in cells:
                if self.left[cell]:
                    yield [(item, cell)]
        for cell in cells:
            yield from self._exchanges(cell)

    def _exchanges(self, cell: int) -> Iterator[Change]:
        """Yield the exchanges of everything in a cell with everything in another."""
        for other in range(len(self.left)):
            here = self._sitting(cell)
            if other != cell and len(here) <= self.room[other]:
                yield [(i, other) for i in here] + [(i, cell) for i in self._sitting(other)]

    def _hot(self) -> Iterator[Change]:
        """Yield changes that take an edge off one of the hottest links."""
        for domain, kind in self._hottest():
            for item in range(len(self.items)):
                if not self._inside(item, domain):
                    continue
                for far in self._partners(item, domain, kind):
                    here, there = self.cell(item), self.cell(far)
                    yield [(item, there)]
                    yield [(far, here)]
                    for other in self._sitting(there):
                        yield self._swap(item, other)
                    for other in self._sitting(here):
                        yield self._swap(far, other)
            chains = self.congestion.ground.chains
            for cell in sorted({self.cell(item) for item in range(len(self.items))}):
                if domain in chains[cell]:
                    yield from self._exchanges(cell)

    def _sitting(self, cell: int) -> list[int]:
        return [item for item in range(len(self.items)) if self.cell(item) == cell]

    def _hottest(self) -> list[tuple[int, int]]:
        """Return (domain, kind) of the most loaded uplink of every kind above its least."""
        congestion, domains = self.congestion, len(self.congestion.ground.domains)
        found = []
        for kind, times in enumerate(congestion.time):
            top = max(times)
            if top <= congestion.base[kind] * (1 + TIE):
                continue
            link = times.index(top)
            if link < 2 * domains:
                found.append((top, link // 2, kind))
        return [(domain, kind) for _, domain, kind in sorted(found, reverse=True)]

    def _inside(self, item: int, domain: int) -> bool:
        return domain in self.congestion.ground.chains[self.cell(item)]

    def _partners(self, item: int, domain: int, kind: int) -> list[int]:
        """Return the items outside a domain that exchange a kind of traffic with one inside."""
        size = len(self.items[0])
        others = {
            edge[0] // size
            for block in self.items[item]
            for edge in self.congestion.traffic.adjacent[block]
            if edge[1] == kind
        }
        return [other for other in sorted(others) if not self._inside(other, domain)]

    def _kick(self, generator: random.Random) -> None:
        """Swap two pairs of items and move one to a free node, whatever it costs."""
        count = len(self.items)
        for _ in range(2):
            item, other = generator.randrange(count), generator.randrange(count)
            if self.cell(item) != self.cell(other):
                self._apply(self._swap(item, other))
        open_ = [cell for cell, left in enumerate(self.left) if left]
        if open_:
            item, cell = generator.randrange(count), generator.choice(open_)
            if self.cell(item) != cell:
                self._apply([(item, cell)])
        self._now = (self.congestion.seconds(), self.congestion.squares())
