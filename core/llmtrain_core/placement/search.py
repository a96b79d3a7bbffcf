"""The search for the assignment of blocks to cells that costs least.

All greedy fillings are candidates, so the answer is never worse than any of them; the best few are
improved. Candidates are ranked by cost, then by the bytes over the most loaded uplink, even where
the NICs set the pace (other jobs meet them there), then by domains used from far to near, then by
what they leave over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmtrain_core.placement.capacity import NO_CELL, Room, Rooms
from llmtrain_core.placement.cost import TIE, Congestion, Ground
from llmtrain_core.placement.flows import Traffic
from llmtrain_core.placement.local_search import MEDIUM, SMALL, Descent
from llmtrain_core.placement.packing import STYLES, Keep, Style, fill, starts
from llmtrain_core.placement.rank_orders import Order, orders
from llmtrain_core.placement.types import Request

WORK = 80_000
"""Blocks dealt out, blocks weighed and links weighed; bounds the time of large jobs."""
BY_LINK = 2
"""Blocks whose weighing takes as long as that of one domain."""
BY_NVLINK = 6
"""Times that weighing takes longer where NVLink spans nodes: each of them is a link."""
WIDELY = (Keep.ALL, Keep.NONE)
"""How all jobs are dealt out; those of up to `MEDIUM` nodes then also with `Keep.NEAR`."""
IMPROVED, IMPROVED_OF_LARGE = 16, 3
"""Candidates that are improved: the best one of every order of ranks comes first."""
KICKED = 3
"""Of these, the best ones that are kicked on, with equal parts of what is left of the budget."""
SHARE = 14
"""Part of what is left of the budget, one in so many, that a candidate may take before: at least
three tenths are left for kicks."""


class Rank(NamedTuple):
    """What is compared, in this order; least is best."""

    seconds: float
    uplink_bytes: float
    spares_outside: tuple[int, ...]
    """Spares for which the domains of the job have no room, from near to far."""
    domains: tuple[int, ...]
    """Domains used, from far to near."""
    gpus_over: int
    """GPUs left over on the nodes."""
    stranded: tuple[int, ...]
    """Free nodes left in the domains of the job, from near to far."""
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to place the job."""

    method: str
    cells: tuple[int, ...]
    """Cell of every block."""
    rank: Rank
    """Least is best."""

    @property
    def order(self) -> str:
        """Name of the order of ranks."""
        return self.method.partition(",")[0]

    @property
    def seconds(self) -> float:
        """Cost, rounded to nine digits."""
        return self.rank.seconds


class Judge:
    """Ranks assignments of one request."""

    def __init__(self, traffic: Traffic, ground: Ground, rooms: Rooms, spares: int):
        self.congestion = Congestion(traffic, ground)
        self.rooms = rooms
        self.spares = spares
        free = {room.path: room.free for room in rooms.root.walk()}
        self._domains = [(len(path) - 1, free[path]) for path in ground.domains]
        """Depth and free nodes of every domain."""

    def candidate(self, method: str, cells: Sequence[int]) -> Candidate:
        """Weigh an assignment."""
        self.congestion.put_all(cells)
        seconds = float(f"{self.congestion.seconds():.9g}")
        counts = Counter(cells)
        used, stranded = ([0] * len(self.rooms.cells[0].path) for _ in range(2))
        for blocks, (depth, free) in zip(self.congestion.held, self._domains, strict=True):
            if blocks:
                used[depth] += 1
                stranded[depth] += free - blocks.bit_count()
        over = sum(
            spot.left for cell, count in counts.items() for spot in self.rooms.spots[cell][:count]
        )
        near = tuple(max(0, self.spares - left) for left in reversed(stranded))
        stranded = [max(0, left - self.spares) for left in stranded]
        rank = Rank(
            seconds,
            float(f"{self.congestion.uplink_bytes():.9g}"),
            near,
            tuple(used),
            over,
            tuple(reversed(stranded)),
            tuple(cells),
        )
        return Candidate(method, tuple(cells), rank)


def search(
    request: Request, traffic: Traffic, ground: Ground, rooms: Rooms, bound: int
) -> list[Candidate]:
    """Return the candidates, best first. There must be room for the job.

    `bound` is the length of the path of the widest domain that the job may use.
    """
    where = starts(rooms, request.nodes, request.spares, bound)
    judge = Judge(traffic, ground, rooms, request.spares)
    found: dict[tuple[int, ...], Candidate] = {}
    least = sum(judge.congestion.base) * (1 + TIE)
    work, price = WORK, len(ground.domains) * BY_LINK + request.nodes
    price *= BY_NVLINK if judge.congestion.wide else 1
    passes: list[tuple[Style, tuple[Keep, ...]]] = [(style, WIDELY) for style in STYLES]
    if request.nodes <= MEDIUM:
        passes += [(style, (Keep.NEAR,)) for style in STYLES]
    for style, keeps in passes:
        for method, cells in _fillings(request, rooms, where, style, keeps):
            if work <= 0:
                break
            work -= len(cells)
            if cells not in found:
                work -= price
                found[cells] = judge.candidate(method, cells)
        ranked = sorted(found.values(), key=lambda c: c.rank)
        if ranked[0].seconds <= least:
            return ranked
    return sorted([*ranked, *_improve(judge, ranked, least)], key=lambda c: c.rank)


def _fillings(
    request: Request, rooms: Rooms, where: Sequence[Room], style: Style, keeps: Sequence[Keep]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (method, cells): ranks in order first, as a scheduler does that counts pods."""
    tried = orders(request.layout, request.gpus_per_node, rooms.largest)
    for start in where if Keep.NONE in keeps else ():
        yield _method(tried[0], style.name), tuple(fill(rooms, start, tried[0], style, Keep.NONE))
    for start in where:
        if start.cell == NO_CELL:
            for order in tried:
                for keep in keeps:
                    cells = fill(rooms, start, order, style, keep)
                    yield _method(order, style.name), tuple(cells)


def _method(order: Order, style: str) -> str:
    return f"{order.name}, {style}"


def _improve(judge: Judge, ranked: Sequence[Candidate], least: float) -> list[Candidate]:
    """Improve the best candidates, until one costs no more than `least`.

    All settle before any is kicked: which one leads farthest shows only then. Tensor groups may
    not be spread over several cells for that.
    """
    rooms = judge.rooms
    if rooms.group > 1 and rooms.depth < len(rooms.cells[0].path):
        return []
    blocks = judge.congestion.traffic.blocks
    heads = {candidate.order: candidate for candidate in reversed(ranked)}
    first = sorted(heads.values(), key=lambda c: c.rank)
    rest = [candidate for candidate in ranked if candidate not in first]
    descent = Descent(judge.congestion, rooms, budget=budget(blocks, judge.congestion.wide))
    most = IMPROVED if blocks <= MEDIUM else IMPROVED_OF_LARGE
    found = []
    for candidate in [*first, *rest][:most]:
        part = descent.budget // (SHARE if blocks <= MEDIUM else 1)
        cells = descent.search(candidate.cells, part, kick=False)
        found.append(judge.candidate(f"{candidate.method}, improved", cells))
        if found[-1].seconds <= least:
            return found
    if blocks <= MEDIUM:
        distinct = {candidate.cells: candidate for candidate in reversed(found)}
        kicked = sorted(distinct.values(), key=lambda c: c.rank)[:KICKED]
        for left, candidate in zip(range(len(kicked), 0, -1), kicked, strict=True):
            cells = descent.search(candidate.cells, descent.budget // left, kick=True)
            found.append(judge.candidate(candidate.method, cells))
            if found[-1].seconds <= least:
                break
    return found


def budget(blocks: int, wide: bool) -> int:
    """Return the moves that may be tried: many for small jobs, where all pairs are tried.

    Where NVLink spans nodes (`wide`), most of the busiest links are nodes: harder to get right.
    """
    if blocks > MEDIUM:
        return 1_200
    return 48_000 if wide and blocks <= SMALL else 36_000
