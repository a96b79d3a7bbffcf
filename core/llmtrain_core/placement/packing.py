"""Pack an order of blocks into a domain: whole groups first, level by level.

A packing distributes the blocks of a domain over its sub-domains. Runs of blocks that belong
together (a whole pipeline, a whole data ring, a tile) go into one sub-domain while a whole run fits
into one. The rest is split over the remaining free nodes. Arnold (the scheduler of MegaScale)
solves this bin packing of whole groups as a mixed-integer program; here it is greedy at every
level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from llmtrain_core.placement.capacity import NOT_A_LEAF, CapacityTree, Division, DomainCapacity
from llmtrain_core.placement.rank_orders import RankOrder


@dataclass(frozen=True, slots=True)
class FillStyle:
    """The order in which sub-domains are filled."""

    name: str
    key: Callable[[int, float], tuple[float, float]]
    """Sort key of a sub-domain, from its free nodes and uplinks: its class, then within it."""
    tight: bool = False
    """Whether the last blocks go into the smallest sub-domain of a class that holds them all."""
    even: bool = False
    """Whether sub-domains get equal parts: the fewest that suffice, or all of them."""
    everywhere: bool = False
    """Whether all sub-domains get a part, because each adds uplinks."""


def _largest(free: int, uplink: float) -> tuple[float, float]:
    return 0, -free


FEWEST = FillStyle("fewest domains", _largest, tight=True)
STYLES = (
    FEWEST,
    FillStyle("spread over all", _largest, tight=True, even=True, everywhere=True),
    FillStyle("even parts", _largest, tight=True, even=True),
    FillStyle("fastest uplinks first", lambda free, uplink: (-uplink, -free), tight=True),
    FillStyle("smallest gaps first", lambda free, uplink: (0, free)),
    FillStyle("domains in order", lambda free, uplink: (0, 0)),
)


class KeepTogether(Enum):
    """Which runs of an order stay in one domain."""

    ALL = "all"
    """Every run that fits into a sub-domain, at any position inside it."""
    NONE = "none"
    """No run: blocks fill sub-domains completely."""
    NEAR = "near"
    """Runs that fit into a leaf domain. Only space for whole runs in a leaf counts for them."""


def fill(
    capacity: CapacityTree,
    start: DomainCapacity,
    order: RankOrder,
    style: FillStyle,
    keep: KeepTogether,
) -> list[int]:
    """Return the leaf domain of every block. All blocks must fit into `start`."""
    leaves = [NOT_A_LEAF] * len(order.blocks)
    units = order.units if keep is not KeepTogether.NONE else order.units[:1]
    if keep is KeepTogether.NEAR:
        units = tuple(unit for unit in units if unit <= capacity.largest)
    _assign(capacity, start, order.blocks, units, style, keep, leaves)
    return leaves


def _assign(
    capacity: CapacityTree,
    domain: DomainCapacity,
    blocks: Sequence[int],
    units: Sequence[int],
    style: FillStyle,
    keep: KeepTogether,
    leaves: list[int],
) -> None:
    if domain.leaf != NOT_A_LEAF:
        for block in blocks:
            leaves[block] = domain.leaf
        return
    if len(domain.children) == 1:
        _assign(capacity, domain.children[0], blocks, units, style, keep, leaves)
        return
    for child, ranges in _division(capacity, domain, len(blocks), units, style, keep):
        part = [block for start, end in ranges for block in blocks[start:end]]
        if child.leaf == NOT_A_LEAF:
            _assign(capacity, child, part, units, style, keep, leaves)
            continue
        for block in part:
            leaves[block] = child.leaf


def _division(
    capacity: CapacityTree,
    domain: DomainCapacity,
    count: int,
    units: Sequence[int],
    style: FillStyle,
    keep: KeepTogether,
) -> Division:
    """Return which of `count` blocks each sub-domain gets: whole runs that fit, then the rest.

    Divisions are cached, because many orders divide a domain in the same way.
    """
    least = capacity.group if len(domain.path) < capacity.depth else 1
    limits = [child.fits for child in domain.children]
    largest = min(max(limits), count)
    sizes = {u for u in units if max(2, least) <= u <= largest and u % least == 0} or {least}
    near = keep is KeepTogether.NEAR
    key = (domain.path, count, frozenset(sizes), style.name, near)
    known = capacity.divisions.get(key)
    if known is not None:
        return known
    uplinks = [child.uplink for child in domain.children]
    ranges: list[list[tuple[int, int]]] = [[] for _ in limits]
    left, taken = limits, 0
    for unit in sorted(sizes, reverse=True):  # where no whole pipeline fits, a tile may
        open_ = left
        if near:  # in whole leaf domains, less what larger runs took
            runs = [capacity.within_leaves(child, unit) for child in domain.children]
            open_ = [max(0, n - m + k) for n, m, k in zip(runs, limits, left, strict=True)]
        whole = [n - n % unit for n in open_]
        shares = _shares(whole, uplinks, count - taken, unit, style)
        taken = _cut(taken, shares, ranges)
        left = [n - share for n, share in zip(left, shares, strict=True)]
    if taken < count:
        used = [sum(end - start for start, end in one) for one in ranges]
        _cut(taken, _leftover(left, used, count - taken), ranges)
    taking = zip(domain.children, ranges, strict=True)
    found = capacity.divisions[key] = [(child, one) for child, one in taking if one]
    return found


def _cut(taken: int, counts: Sequence[int], ranges: list[list[tuple[int, int]]]) -> int:
    """Assign each sub-domain its count of blocks, starting at the first unassigned block."""
    for one, count in zip(ranges, counts, strict=True):
        if count:
            one.append((taken, taken + count))
            taken += count
    return taken


def _shares(
    limits: Sequence[int], uplinks: Sequence[float], count: int, unit: int, style: FillStyle
) -> list[int]:
    """Distribute whole units over sub-domains: as many as fit, at most `count` blocks."""
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
    """Reduce the limits of all sub-domains, or of the fewest that suffice, to equal parts."""
    ranked = sorted(range(len(limits)), key=lambda i: (-limits[i], i))
    used, total = [], 0
    for index in ranked:
        if total >= count and not everywhere:
            break
        used.append(index)
        total += limits[index]
    cut = [0] * len(limits)
    for position, index in enumerate(reversed(used)):  # the smallest first: its gap is fixed
        fair = -(-count // unit // (len(used) - position)) * unit
        fair += unit if fair * (len(used) - position) < count else 0
        cut[index] = min(limits[index], fair, count)
        count -= cut[index]
    return cut


def _leftover(limits: Sequence[int], used: Sequence[int], count: int) -> list[int]:
    """Distribute blocks that did not fit as whole units: used sub-domains and large gaps first."""
    shares = [0] * len(limits)
    for index in sorted(range(len(limits)), key=lambda i: (not used[i], -limits[i], i)):
        shares[index] = min(count, limits[index])
        count -= shares[index]
    return shares


def candidate_domains(
    capacity: CapacityTree, count: int, spares: int, max_depth: int, most: int = 4
) -> list[DomainCapacity]:
    """Return the domains that could hold the job: nearest level first, the tightest fits first.

    `max_depth` is the path length of the domain that must contain the job and its spares. Of levels
    farther than the nearest one that fits, fewer domains are tried.
    """
    levels = len(capacity.leaves[0].path)
    max_depth = min(max_depth, levels)
    outer = {domain.path for domain in capacity.at(max_depth) if domain.free >= count + spares}
    found: list[DomainCapacity] = []
    for depth in range(levels, max_depth - 1, -1):
        fitting = [r for r in capacity.at(depth) if r.fits >= count and r.path[:max_depth] in outer]
        fitting.sort(key=lambda domain: (domain.free < count + spares, domain.fits))
        found += fitting[: most if not found else 2]
    return found
