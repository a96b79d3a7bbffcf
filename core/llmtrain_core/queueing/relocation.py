"""A job that runs might be better off elsewhere, now that others have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.placement import Placement, Request, cost_of, place
from llmtrain_core.topology.inventory import Snapshot

LEAST_GAIN = 1.1
"""Below this a move is not worth a restart from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Relocation:
    """A better place, free now."""

    placement: Placement
    gain: float
    """Communication time of a step here over what it would be there."""


def relocation(request: Request, nodes: Sequence[str], fabric: Snapshot) -> Relocation | None:
    """Return a place that is materially better than `nodes`, or None.

    `nodes` are in order of rank block; `fabric` shows them as free, since the job would leave them.
    """
    by_name = {node.name: node for node in fabric.nodes}
    if not all(name in by_name for name in nodes):
        return None
    here = cost_of(request, fabric, [fabric.path(by_name[name]) for name in nodes])
    found = place(request, fabric)
    if not isinstance(found, Placement) or found.cost.seconds <= 0:
        return None
    gain = here.seconds / found.cost.seconds
    return Relocation(found, gain) if gain >= LEAST_GAIN else None
