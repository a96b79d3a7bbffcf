"""The uplink ledger: which share of each domain's uplinks the jobs that run keep busy.

A job's share is the bytes that its placement sends over an uplink in a step, over what the uplink
can move in the time of a step. The placement takes that off the capacity (at most nine tenths), so
a job whose groups must leave a domain prefers one whose uplinks nobody else needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmtrain_core.placement import Request
from llmtrain_core.placement.cost import Congestion, ground_of, traffic_of
from llmtrain_core.placement.tree import Path, tree_of
from llmtrain_core.topology.inventory import Snapshot

COMMUNICATION = 0.5
"""Share of a step of unknown length that its exposed communication takes."""


def oversubscribed(fabric: Snapshot) -> bool:
    """Whether any uplink can be the bottleneck: otherwise no ledger is needed."""
    return any(level.oversubscription > 1 for level in fabric.levels)


def uplink_shares(
    request: Request, nodes: Sequence[str], fabric: Snapshot, step_seconds: float | None = None
) -> dict[Path, float]:
    """Return the share of each uplink that a job keeps busy, by domain path from far to near.

    `nodes` are in order of rank block. A node that is gone leaves the job out of the ledger.
    """
    by_name = {node.name: node for node in fabric.nodes}
    if not all(name in by_name for name in nodes):
        return {}
    paths = [fabric.path(by_name[name])[:-1] for name in nodes]
    cells = list(dict.fromkeys(paths))
    ground = ground_of(tree_of(fabric), cells)
    congestion = Congestion(traffic_of(request), ground)
    congestion.put_all([cells.index(path) for path in paths])
    step = step_seconds or congestion.seconds() / COMMUNICATION
    shares: dict[Path, float] = {}
    for index, domain in enumerate(ground.domains):
        out, into = (sum(load[2 * index + side] for load in congestion.load) for side in (0, 1))
        if step > 0 and max(out, into):
            shares[domain] = max(out, into) / (ground.tree.capacities[domain] * step)
    return shares


def add(ledger: dict[Path, float], shares: Mapping[Path, float]) -> None:
    """Enter a job."""
    for domain, share in shares.items():
        ledger[domain] = ledger.get(domain, 0.0) + share
