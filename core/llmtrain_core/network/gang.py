"""Choose one network for a whole gang. Nodes whose networks differ hold no gang together.

NCCL hangs or fails if some ranks use another network than the rest, and works at the speed of the
slowest. So the nodes of a gang have the same row, devices, variables and annotations.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.profile import (
    PLAIN,
    NetworkRequest,
    NodeNetwork,
    NoNetwork,
    Setting,
    network_of,
)

_Key = tuple[str, tuple[Setting, ...]]


@dataclass(frozen=True, slots=True)
class GangNetwork:
    """A network that a gang could use, and the nodes that have it."""

    network: NodeNetwork | None
    """None if no node has a network that the job can use."""
    nodes: frozenset[str]
    excluded: Mapping[str, str]
    """Why the gang cannot use other nodes with this network, by node."""

    @property
    def key(self) -> Hashable:
        """What the nodes have in common. Equal keys exclude the same nodes."""
        return None if self.network is None else (self.network.row, self.network.settings)


def gang_networks(
    nodes: Mapping[str, NodeFacts], request: NetworkRequest, size: int
) -> tuple[GangNetwork, ...]:
    """Return the networks that a gang of `size` nodes could use, best first; at least one.

    `nodes` are those that could hold a block if they were empty. First come the networks that have
    enough of them, with RDMA before TCP, then those with the most nodes.
    """
    found: dict[_Key, list[tuple[str, NodeNetwork]]] = {}
    unusable: dict[str, str] = {}
    for name, facts in sorted(nodes.items()):
        network = network_of(facts, request)
        if isinstance(network, NoNetwork):
            unusable[name] = network.cause
        else:
            found.setdefault((network.row, network.settings), []).append((name, network))
    if not found:
        return (GangNetwork(None, frozenset(), unusable),)
    ordered = sorted(found, key=lambda key: _order(key, len(found[key]), size))
    return tuple(_option(key, found, unusable) for key in ordered)


def _order(key: _Key, count: int, size: int) -> tuple[bool, bool, int, _Key]:
    row, settings = key
    is_enough = count >= size
    return not is_enough, is_enough and row == PLAIN, -count, (row, settings)


def _option(
    key: _Key, found: Mapping[_Key, list[tuple[str, NodeNetwork]]], unusable: Mapping[str, str]
) -> GangNetwork:
    members = found[key]
    notes = tuple(dict.fromkeys(note for _, item in members for note in item.notes))
    preset = next((item.topology for _, item in members if item.topology), None)
    network = replace(members[0][1], notes=notes, topology=preset)
    others = {
        name: f"has another network: {item.title}"
        for other, items in found.items()
        if other != key
        for name, item in items
    }
    return GangNetwork(
        network,
        frozenset(name for name, _ in members),
        {**others, **unusable},
    )
