"""Uplink usage: the share of each domain's uplinks that running jobs use.

A job's share is the bytes that its placement sends over an uplink in a step, over what the uplink
can move in the time of a step. The placement subtracts it from the capacity (at most nine tenths),
so a job whose groups cross domains prefers uplinks that no other job uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmtrain_core.placement import Request
from llmtrain_core.placement.cost import Congestion, build_link_index
from llmtrain_core.placement.traffic.flows import traffic_of
from llmtrain_core.placement.tree import Path, tree_of
from llmtrain_core.topology.inventory import Snapshot

COMMUNICATION_SHARE = 0.5
"""Assumed share of exposed communication in a step of unknown length."""


def oversubscribed(fabric: Snapshot) -> bool:
    """Return True if an uplink can be the bottleneck. Otherwise uplink usage does not matter."""
    return any(level.oversubscription > 1 for level in fabric.levels)


def uplink_usage(
    request: Request, nodes: Sequence[str], fabric: Snapshot, step_seconds: float | None = None
) -> dict[Path, float]:
    """Return the share of each uplink that a job uses, by domain path from far to near.

    `nodes` are in order of rank block. If a node does not exist any more, return nothing.
    """
    by_name = {node.name: node for node in fabric.nodes}
    if not all(name in by_name for name in nodes):
        return {}
    paths = [fabric.path(by_name[name])[:-1] for name in nodes]
    leaves = list(dict.fromkeys(paths))
    link_index = build_link_index(tree_of(fabric), leaves)
    traffic = traffic_of(request.layout, request.gpus_per_node, request.traffic)
    congestion = Congestion(traffic, link_index)
    congestion.assign_all([leaves.index(path) for path in paths])
    step = step_seconds or congestion.seconds() / COMMUNICATION_SHARE
    shares: dict[Path, float] = {}
    for index, domain in enumerate(link_index.domains):
        out, into = (sum(load[2 * index + side] for load in congestion.load) for side in (0, 1))
        if step > 0 and max(out, into):
            shares[domain] = max(out, into) / (link_index.tree.capacities[domain] * step)
    return shares


def add_usage(total: dict[Path, float], shares: Mapping[Path, float]) -> None:
    """Add the usage of one job to a total."""
    for domain, share in shares.items():
        total[domain] = total.get(domain, 0.0) + share
