"""Nodes and their GPUs by state and domain, and the largest block of free GPUs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from llmtrain_core.plan.memory.node_filter import WHOLE_GPUS
from llmtrain_core.topology.inventory import Node, Snapshot, Usage
from llmtrain_core.topology.levels import Levels

NodeState = Literal["free", "used", "reserved", "quarantined", "unready", "cordoned"]
NODE_STATES: tuple[NodeState, ...] = get_args(NodeState)

ANY = ""
"""Level and domain of the figures of all nodes, and domain of nodes without a level's label."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """Figures of the nodes that have GPUs."""

    nodes: Mapping[NodeState, int]
    gpus: Mapping[tuple[NodeState, str, str], int]
    """By state, level and domain. Zeros are left out, except of all nodes and of free GPUs."""
    largest_free_block: Mapping[str, int]
    """The most free GPUs in one domain, by level."""


@dataclass(slots=True)
class _Tally:
    nodes: Counter[NodeState] = field(default_factory=Counter)
    gpus: Counter[tuple[NodeState, str, str]] = field(default_factory=Counter)
    free: dict[str, Counter[tuple[str, ...]]] = field(default_factory=dict)
    """Free GPUs by level and domain path."""


def node_figures(
    nodes: Iterable[Node],
    levels: Levels,
    used: Mapping[str, int],
    held: Mapping[str, int],
    quarantined: Collection[str],
) -> NodeFigures:
    """Return the figures.

    `used` are the GPUs of pods by node; `held` are those of pods and placements together.
    """
    tally = _Tally(free={level.name: Counter() for level in levels})
    snapshot = Snapshot(levels, ())
    for node in nodes:
        total = _gpus(node.allocatable)
        if not total:
            continue
        name = node.name
        gpus = _by_state(node, total, used.get(name, 0), held.get(name, 0), name in quarantined)
        tally.nodes[next(iter(gpus))] += 1
        domains = [(ANY, ANY)]
        domains += [(level.name, level.domain(node.labels) or ANY) for level in levels[:-1]]
        for state, count in {"free": 0, **gpus}.items():
            for level_name, domain in domains:
                tally.gpus[state, level_name, domain] += count
        path = snapshot.path(node)
        for depth, level in enumerate(levels, 1):
            tally.free[level.name][path[:depth]] += gpus.get("free", 0)
    return NodeFigures(
        nodes={state: tally.nodes[state] for state in NODE_STATES},
        gpus={**{(state, ANY, ANY): 0 for state in NODE_STATES}, **tally.gpus},
        largest_free_block={
            name: max(blocks.values(), default=0) for name, blocks in tally.free.items()
        },
    )


def _by_state(
    node: Node, total: int, used: int, held: int, quarantined: bool
) -> dict[NodeState, int]:
    """Return the GPUs of a node by state, without zeros. The first state is that of the node."""
    if not node.ready:
        return {"unready": total}
    used = min(total, used)
    reserved = min(total, max(used, held)) - used
    out = quarantined or node.avoided
    rest: NodeState = "cordoned" if node.cordoned else "quarantined" if out else "free"
    found: dict[NodeState, int] = {
        "used": used,
        "reserved": reserved,
        rest: total - used - reserved,
    }
    return {state: count for state, count in found.items() if count}


def foreign_gpus(used: Mapping[tuple[str, str], int]) -> list[Usage]:
    """Return the whole GPUs that foreign pods use; `used` is by node and resource."""
    return [Usage(node, name, count) for (node, name), count in used.items() if name in WHOLE_GPUS]


def gpus_by_node(usage: Iterable[Usage]) -> dict[str, int]:
    """Return the whole GPUs in use by node. A GPU may have several names on one node."""
    found: dict[str, Counter[str]] = {}
    for item in usage:
        if item.resource in WHOLE_GPUS:
            found.setdefault(item.node, Counter())[item.resource] += item.amount
    return {node: max(amounts.values()) for node, amounts in found.items()}


def _gpus(allocatable: Mapping[str, int]) -> int:
    return max(allocatable.get(resource, 0) for resource in WHOLE_GPUS)
