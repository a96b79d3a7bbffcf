"""What a placed job takes of the fabric's uplinks: the entries of a ledger over all jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llmtrain_core.placement.cost import Congestion, ground_of, traffic_of
from llmtrain_core.placement.tree import Path, tree_of
from llmtrain_core.placement.types import Request
from llmtrain_core.topology.inventory import Snapshot


def uplink_rates(
    request: Request, snapshot: Snapshot, paths: Sequence[Path], step_seconds: float
) -> dict[Path, float]:
    """Return bytes per second over the uplinks of every domain that the job's traffic leaves.

    `paths` are node paths in order of rank block. All kinds of groups are added up, hidden or not;
    of the two directions the busier one counts. Raises ValueError for a step of no length.
    """
    if step_seconds <= 0:
        raise ValueError(f"step_seconds: {step_seconds} is not the length of a step; use its time")
    cells = list(dict.fromkeys(path[:-1] for path in paths))
    index = {cell: number for number, cell in enumerate(cells)}
    ground = ground_of(tree_of(snapshot), cells)
    congestion = Congestion(traffic_of(request), ground)
    congestion.put_all([index[path[:-1]] for path in paths])
    rates = {}
    for number, path in enumerate(ground.domains):
        out = sum(load[2 * number] for load in congestion.load)
        into = sum(load[2 * number + 1] for load in congestion.load)
        if out or into:
            rates[path] = max(out, into) / step_seconds
    return rates


def ledger(snapshot: Snapshot, rates: Iterable[Mapping[Path, float]]) -> dict[Path, float]:
    """Return the share of every uplink that some jobs use, for `Snapshot.uplinks`."""
    capacities = tree_of(snapshot).capacities
    shares: dict[Path, float] = {}
    for job in rates:
        for path, rate in job.items():
            if path in capacities:
                shares[path] = shares.get(path, 0.0) + rate / capacities[path]
    return shares
