"""Ways to fill a domain with an order of blocks: whole groups first, level by level.

A filling deals the blocks of a domain out to its sub-domains. Runs that belong together (a whole
pipeline, a whole data ring, a tile) go into one sub-domain as long as one has room for a whole run;
what is left is cut over the room that remains. This is the bin packing of whole groups that Arnold
(MegaScale's scheduler) solves as a mixed-integer program, done greedily at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from llmtrain_core.placement.capacity import NO_CELL, Division, Room, Rooms
from llmtrain_core.placement.rank_orders import Order


@dataclass(frozen=True, slots=True)
class Style:
    """In which sequence sub-domains are filled."""

    name: str
    key: Callable[[int, float], tuple[float, float]]
    """From the room and the uplinks of a sub-domain to where it comes: its class, then inside."""
    tight: bool = False
    """Whether the end goes into the tightest of a class that holds all of it."""
    even: bool = False
    """Whether sub-domains get equal parts: the fewest that suffice, or all of them."""
    everywhere: bool = False
    """Whether all sub-domains get a part, since every one adds uplinks."""


def _largest(room: int, uplink: float) -> tuple[float, float]:
    return 0, -room


FEWEST = Style("fewest domains", _largest, tight=True)
STYLES = (
    FEWEST,
    Style("spread over all", _largest, tight=True, even=True, everywhere=True),
    Style("even parts", _largest, tight=True, even=True),
    Style("fastest uplinks first", lambda room, uplink: (-uplink, -room), tight=True),
    Style("smallest gaps first", lambda room, uplink: (0, room)),
    Style("domains in order", lambda room, uplink: (0, 0)),
)


class Keep(Enum):
    """Which runs of an order stay together."""

    ALL = "all"
    """Every run, as long as a sub-domain has room for it, wherever inside that is."""
    NONE = "none"
    """Blocks fill sub-domains to the brim."""
    NEAR = "near"
    """Runs that a cell can hold, each in one cell: no other room counts until they are dealt."""


def fill(rooms: Rooms, start: Room, order: Order, style: Style, keep: Keep) -> list[int]:
    """Return the cell of every block; `start` must have room for all of them."""
    cells = [NO_CELL] * len(order.blocks)
    units = order.units if keep is not Keep.NONE else order.units[:1]
    if keep is Keep.NEAR:
        units = tuple(unit for unit in units if unit <= rooms.largest)
    _deal(rooms, start, order.blocks, units, style, keep, cells)
    return cells


def _deal(
    rooms: Rooms,
    room: Room,
    blocks: Sequence[int],
    units: Sequence[int],
    style: Style,
    keep: Keep,
    cells: list[int],
) -> None:
    if room.cell != NO_CELL:
        for block in blocks:
            cells[block] = room.cell
        return
    if len(room.children) == 1:
        _deal(rooms, room.children[0], blocks, units, style, keep, cells)
        return
    for child, ranges in _division(rooms, room, len(blocks), units, style, keep):
        part = [block for start, end in ranges for block in blocks[start:end]]
        if child.cell == NO_CELL:
            _deal(rooms, child, part, units, style, keep, cells)
            continue
        for block in part:
            cells[block] = child.cell


def _division(
    rooms: Rooms, room: Room, count: int, units: Sequence[int], style: Style, keep: Keep
) -> Division:
    """Return which of `count` blocks every sub-domain takes: as whole as they fit, then the rest.

    Many orders divide a room alike, so divisions are remembered.
    """
    least = rooms.group if len(room.path) < rooms.depth else 1
    limits = [child.fits for child in room.children]
    largest = min(max(limits), count)
    sizes = {u for u in units if max(2, least) <= u <= largest and u % least == 0} or {least}
    near = keep is Keep.NEAR
    key = (room.path, count, frozenset(sizes), style.name, near)
    known = rooms.divisions.get(key)
    if known is not None:
        return known
    uplinks = [child.uplink for child in room.children]
    ranges: list[list[tuple[int, int]]] = [[] for _ in limits]
    left, taken = limits, 0
    for unit in sorted(sizes, reverse=True):  # where no whole pipeline fits, a tile may
        open_ = left
        if near:  # in whole cells, less what larger runs took
            runs = [rooms.within_cells(child, unit) for child in room.children]
            open_ = [max(0, n - m + k) for n, m, k in zip(runs, limits, left, strict=True)]
        whole = [n - n % unit for n in open_]
        shares = _shares(whole, uplinks, count - taken, unit, style)
        taken = _cut(taken, shares, ranges)
        left = [n - share for n, share in zip(left, shares, strict=True)]
    if taken < count:
        used = [sum(end - start for start, end in one) for one in ranges]
        _cut(taken, _leftover(left, used, count - taken), ranges)
    taking = zip(room.children, ranges, strict=True)
    found = rooms.divisions[key] = [(child, one) for child, one in taking if one]
    return found


def _cut(taken: int, counts: Sequence[int], ranges: list[list[tuple[int, int]]]) -> int:
    """Give every sub-domain its count of blocks, from the first that is not taken yet."""
    for one, count in zip(ranges, counts, strict=True):
        if count:
            one.append((taken, taken + count))
            taken += count
    return taken


def _shares(
    limits: Sequence[int], uplinks: Sequence[float], count: int, unit: int, style: Style
) -> list[int]:
    """Deal whole units out to sub-domains; as many as there is room for, at most `count`."""
    shares = [0] * len(limits)
    missing = min(count - count % unit, sum(limits))
    if style.even:
        limits = _level(limits, missing, unit, style.everywhere)
    keys = [style.key(limit, uplink) for limit, uplink in zip(limits, uplinks, strict=True)]
    ranked = sorted((i for i, limit in enumerate(limits) if limit), key=keys.__getitem__)
    for place, index in enumerate(ranked):
        if not missing:
            break
        if style.tight and limits[index] >= missing:  # what is left fits into one: the tightest
            alike = [i for i in ranked[place:] if keys[i][0] == keys[index][0]]
            index = min((i for i in alike if limits[i] >= missing), key=limits.__getitem__)
        shares[index] = min(missing, limits[index])
        missing -= shares[index]
    return shares


def _level(limits: Sequence[int], count: int, unit: int, everywhere: bool) -> list[int]:
    """Cut the limits of all sub-domains, or of the fewest that suffice, to about equal parts."""
    ranked = sorted(range(len(limits)), key=lambda i: (-limits[i], i))
    used, room = [], 0
    for index in ranked:
        if room >= count and not everywhere:
            break
        used.append(index)
        room += limits[index]
    cut = [0] * len(limits)
    for position, index in enumerate(reversed(used)):  # the smallest first: its gap is fixed
        fair = -(-count // unit // (len(used) - position)) * unit
        fair += unit if fair * (len(used) - position) < count else 0
        cut[index] = min(limits[index], fair, count)
        count -= cut[index]
    return cut


def _leftover(limits: Sequence[int], used: Sequence[int], count: int) -> list[int]:
    """Deal out what did not fit as whole units: where the job is anyway, largest gap first."""
    shares = [0] * len(limits)
    for index in sorted(range(len(limits)), key=lambda i: (not used[i], -limits[i], i)):
        shares[index] = min(count, limits[index])
        count -= shares[index]
    return shares


def starts(rooms: Rooms, count: int, spares: int, bound: int, most: int = 4) -> list[Room]:
    """Return the domains that could hold the job: nearest level first, the tightest fits first.

    `bound` is the length of the path of the domain in which job and spares must sit; of every level
    farther than the nearest that fits, fewer domains are tried.
    """
    levels = len(rooms.cells[0].path)
    bound = min(bound, levels)
    outer = {room.path for room in rooms.at(bound) if room.free >= count + spares}
    found: list[Room] = []
    for depth in range(levels, bound - 1, -1):
        fitting = [r for r in rooms.at(depth) if r.fits >= count and r.path[:bound] in outer]
        fitting.sort(key=lambda room: (room.free < count + spares, room.fits))
        found += fitting[: most if not found else 2]
    return found
