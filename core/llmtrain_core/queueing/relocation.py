"""Find another placement for a running job: a better one, or one without nodes that are drained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from llmtrain_core.placement import Placement, Request, cost_of, place
from llmtrain_core.topology.inventory import Snapshot

MIN_GAIN = 1.1
"""Below this a relocation is not worth a restart from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Relocation:
    """A better placement on nodes that are free now."""

    placement: Placement
    gain: float
    """Communication time of a step on the current nodes over that on the new ones."""


def find_placement_without(
    request: Request, leaving: Collection[str], fabric: Snapshot
) -> Placement | None:
    """Return a placement without the nodes `leaving`, or None if there is none now.

    `fabric` shows the nodes of the job as free.
    """
    excluded = request.excluded | frozenset(leaving)
    found = place(replace(request, excluded=excluded), fabric)
    return found if isinstance(found, Placement) else None


def find_relocation(request: Request, nodes: Sequence[str], fabric: Snapshot) -> Relocation | None:
    """Return a placement that is materially better than `nodes`, or None.

    `nodes` are in order of rank block. `fabric` shows them as free, since the job releases them.
    """
    by_name = {node.name: node for node in fabric.nodes}
    if not all(name in by_name for name in nodes):
        return None
    here = cost_of(request, fabric, [fabric.path(by_name[name]) for name in nodes])
    found = place(request, fabric)
    if not isinstance(found, Placement) or found.cost.seconds <= 0:
        return None
    gain = here.seconds / found.cost.seconds
    return Relocation(found, gain) if gain >= MIN_GAIN else None
