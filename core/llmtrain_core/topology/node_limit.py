"""Which findings about the nodes of a cluster have an effect: the limit on excluded nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmtrain_core.node_health import ExclusionLimit, nodes_in_force
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.resources import is_device


def devices_of(node: Node) -> frozenset[str]:
    """Return the names of the devices of a node. Few jobs can use nodes of several kinds."""
    return frozenset(
        name for name, amount in node.allocatable.items() if amount and is_device(name)
    )


def has_bounded_findings(node: Node) -> bool:
    """Return True if the limit decides about a finding of a node."""
    return any(finding.bounded for finding in node.health)


def is_excluded(node: Node) -> bool:
    """Return True if a node counts towards the limit: a bounded finding has an effect."""
    return any(finding.bounded and finding.in_force for finding in node.health)


def without_effect(node: Node) -> Node:
    """Return a node beyond the limit: its findings are known, but have no effect."""
    health = tuple(replace(f, in_force=f.in_force and not f.bounded) for f in node.health)
    return replace(node, health=health)


def within_limit(nodes: Sequence[Node], max_percent: float) -> tuple[Node, ...]:
    """Return the nodes, with findings that have an effect on at most this share of them."""
    found = {node.name: node.health for node in nodes if has_bounded_findings(node)}
    if not found:
        return tuple(nodes)
    kinds = {node.name: devices_of(node) for node in nodes}
    kept = nodes_in_force(found, ExclusionLimit(kinds, max_percent))
    beyond = found.keys() - kept
    return tuple(without_effect(node) if node.name in beyond else node for node in nodes)
