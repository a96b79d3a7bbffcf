"""Ways to fill a domain with an order of blocks: whole groups first, level by level.

A filling deals the blocks of a domain out to its sub-domains. Runs that belong together (a whole
pipeline, a whole data ring, a tile) go into one sub-domain as long as one has room for a whole run;
what is left is cut over the room that remains. This is the bin packing of whole groups that Arnold
(MegaScale's scheduler) solves as a mixed-integer program, done greedily at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmtrain_core.placement.orders import Order
from llmtrain_core.placement.rooms import NO_CELL, Room, Rooms

Pick = Callable[[Sequence[int], Sequence[float], int], int]
"""From the room and the uplinks of every sub-domain, and the blocks that are missing, to the next
sub-domain to fill."""


@dataclass(frozen=True, slots=True)
class Style:
    """In which sequence sub-domains are filled."""

    name: str
    pick: Pick
    even: bool = False
    """Whether sub-domains get equal parts: the fewest that suffice, or all of them."""
    everywhere: bool = False
    """Whether all sub-domains get a part, since every one adds uplinks."""


def _fewest(rooms: Sequence[int], uplinks: Sequence[float], missing: int) -> int:
    """Pick the tightest that holds all that is missing, else the largest."""
    enough = [room for room in rooms if room >= missing]
    return rooms.index(min(enough) if enough else max(rooms))


def _smallest(rooms: Sequence[int], uplinks: Sequence[float], missing: int) -> int:
    return rooms.index(min(room for room in rooms if room))


def _first(rooms: Sequence[int], uplinks: Sequence[float], missing: int) -> int:
    return next(index for index, room in enumerate(rooms) if room)


def _widest(rooms: Sequence[int], uplinks: Sequence[float], missing: int) -> int:
    """Pick the fastest uplinks; among equals as `_fewest`."""
    best = max(uplink for uplink, room in zip(uplinks, rooms, strict=True) if room)
    among = [room if up == best else 0 for up, room in zip(uplinks, rooms, strict=True)]
    return _fewest(among, uplinks, missing)


FEWEST = Style("fewest domains", _fewest)
STYLES = (
    FEWEST,
    Style("even parts", _fewest, even=True),
    Style("spread over all", _fewest, even=True, everywhere=True),
    Style("fastest uplinks first", _widest),
    Style("smallest gaps first", _smallest),
    Style("domains in order", _first),
)


def fill(rooms: Rooms, start: Room, order: Order, style: Style, whole: bool) -> list[int]:
    """Return the cell of every block; `start` must have room for all of them.

    `whole` keeps runs together; without it, blocks fill sub-domains to the brim.
    """
    cells = [NO_CELL] * len(order.blocks)
    units = order.units if whole else order.units[:1]
    _deal(rooms, start, list(order.blocks), units, style, cells)
    return cells


def _deal(
    rooms: Rooms, room: Room, blocks: Sequence[int], units: Sequence[int], style: Style,
    cells: list[int],
) -> None:  # fmt: skip
    if room.cell != NO_CELL:
        for block in blocks:
            cells[block] = room.cell
        return
    if len(room.children) == 1:
        _deal(rooms, room.children[0], blocks, units, style, cells)
        return
    least = rooms.group if len(room.path) < rooms.depth else 1
    limits = [child.fits for child in room.children]
    largest = min(max(limits), len(blocks))
    unit = max((u for u in units if u <= largest and u % least == 0), default=least)
    uplinks = [child.uplink for child in room.children]
    wholes = [limit - limit % unit for limit in limits]
    counts = _shares(wholes, uplinks, len(blocks), unit, style)
    rest = len(blocks) - sum(counts)
    taken = 0
    parts: list[list[int]] = []
    for count in counts:
        parts.append(list(blocks[taken : taken + count]))
        taken += count
    if rest:
        left = [limit - count for limit, count in zip(limits, counts, strict=True)]
        for part, count in zip(parts, _leftover(left, counts, rest), strict=True):
            part += blocks[taken : taken + count]
            taken += count
    for child, part in zip(room.children, parts, strict=True):
        if part:
            _deal(rooms, child, part, units, style, cells)


def _shares(
    limits: Sequence[int], uplinks: Sequence[float], count: int, unit: int, style: Style
) -> list[int]:
    """Deal whole units out to sub-domains; as many as there is room for, at most `count`."""
    shares = [0] * len(limits)
    missing = min(count - count % unit, sum(limits))
    if style.even:
        limits = _level(limits, missing, unit, style.everywhere)
    left = list(limits)
    while missing:
        index = style.pick(left, uplinks, missing)
        share = min(missing, left[index])
        shares[index] += share
        left[index] -= share
        missing -= share
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
