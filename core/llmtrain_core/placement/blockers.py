"""The fewest nodes that would let a job in if nothing held them back.

Only what can change counts: GPUs in use, nodes kept for others, cordoned or not ready, and what the
job itself asks for. A node that is too small never helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmtrain_core.placement.capacity import Spot, enough, rooms_of, tensor_group
from llmtrain_core.placement.filter import IN_USE, WITHHELD, Screening
from llmtrain_core.placement.tree import Path, Tree, depth_of, natural
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Node, Snapshot

_CAUSES = (
    WITHHELD,
    "cordoned",
    "not ready",
    "excluded by the job",
    "taint not tolerated",
    "node selector does not match",
)
"""What can change, after GPUs in use: the likelier to pass by itself, the earlier."""


Held = tuple[Path, str, int]
"""Path of a node, what holds it back, and how likely that passes: less is likelier."""


@dataclass(frozen=True, slots=True)
class Blockers:
    """Nodes, each with the cause, and the domain in which the job would then fit."""

    nodes: tuple[tuple[str, str], ...]
    where: str
    """Level and path of the domain; empty for the whole fabric."""
    busy: bool
    """Whether nothing but pods of others holds them back."""


def blockers_of(
    request: Request, snapshot: Snapshot, tree: Tree, screening: Screening
) -> Blockers | None:
    """Return the fewest and likeliest nodes to wait for; None where no wait helps."""
    bound = depth_of(tree.levels, request.require)
    waiting = [(node, causes) for node, causes in screening.refused if _patience(causes) >= 0]
    held = _by_domain(
        snapshot, [(node, " and ".join(c), _patience(c)) for node, c in waiting], bound
    )
    free = _by_domain(snapshot, [(node, "", 0) for node in screening.usable], bound)
    found: list[tuple[tuple[int, int], tuple[object, ...], Blockers]] = []
    for domain in sorted(free.keys() | held.keys(), key=natural):
        have = [Spot(path, 0) for path, _, _ in free.get(domain, [])]
        wait = sorted(held.get(domain, []), key=lambda h: (h[2], natural(h[0])))
        chosen = _fewest(request, tree, bound, have, wait)
        if chosen:
            worst = max(patience for _, _, patience in chosen)
            where = f"{request.require} {'/'.join(domain)}" if domain else ""
            nodes = tuple((path[-1], cause) for path, cause, _ in chosen)
            named = Blockers(nodes, where, busy=worst == 0)
            found.append(((worst, len(chosen)), natural(domain), named))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _patience(causes: Sequence[str]) -> int:
    """Rank causes that can all change; -1 for a node that can never hold a block."""
    ranks = [
        0 if cause.endswith(IN_USE) else _CAUSES.index(cause) + 1 if cause in _CAUSES else -1
        for cause in causes
    ]
    return max(ranks) if min(ranks) >= 0 else -1


def _by_domain(
    snapshot: Snapshot, nodes: Iterable[tuple[Node, str, int]], bound: int
) -> dict[Path, list[Held]]:
    found: dict[Path, list[Held]] = {}
    for node, cause, patience in nodes:
        path = snapshot.path(node)
        found.setdefault(path[:bound], []).append((path, cause, patience))
    return found


def _fewest(
    request: Request, tree: Tree, bound: int, have: Sequence[Spot], wait: Sequence[Held]
) -> list[Held]:
    """Return the first waiting nodes that suffice, without those that do not matter."""

    def fits(chosen: Sequence[Held]) -> bool:
        spots = [*have, *(Spot(path, 0) for path, _, _ in chosen)]
        return enough(rooms_of(spots, tree, request), request, bound)

    short = max(0, request.nodes + request.spares - len(have))
    if short > len(wait):
        return []
    if tensor_group(request, tree)[0] == 1:
        return list(wait[:short])
    low, high = short, len(wait)
    if not fits(wait):
        return []
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(wait[:middle]) else (middle + 1, high)
    chosen = list(wait[:low])
    for node in chosen[::-1] if low > short else ():  # some are in vain: their group stays short
        without = [other for other in chosen if other != node]
        chosen = without if fits(without) else chosen
    return chosen
