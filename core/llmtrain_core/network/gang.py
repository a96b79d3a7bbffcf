"""Choose one network for a whole gang. Nodes whose networks differ hold no gang together.

NCCL hangs or fails if some ranks use another network than the rest, and works at the speed of the
slowest. So the nodes of a gang have the same row, devices, variables and annotations.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.network.facts import NodeFacts
from llmtrain_core.network.profile import PLAIN, NodeNetwork, NoNetwork, network_of
from llmtrain_core.network.request import NetworkRequest
from llmtrain_core.network.settings import Setting

_Key = tuple[str, tuple[Setting, ...]]
_Kind = tuple[NodeNetwork, list[str]]
"""A network, and nodes with equal facts that have it."""


@dataclass(frozen=True, slots=True)
class GangNetwork:
    """A network that a gang could use, and the nodes that have it."""

    network: NodeNetwork | None
    """None if no node has a network that the job can use."""
    nodes: frozenset[str]
    excluded: Mapping[str, str]
    """Why the gang cannot use other nodes with this network, by node."""
    key: Hashable = None
    """Equal keys exclude the same of some nodes, for the same reasons."""


def gang_networks(
    nodes: Mapping[str, NodeFacts], request: NetworkRequest, size: int
) -> tuple[GangNetwork, ...]:
    """Return the networks that a gang of `size` nodes could use, best first; at least one.

    `nodes` are those that could hold a block if they were empty. First come the networks that have
    enough of them, with RDMA before TCP, then those with the most nodes.
    """
    found: dict[_Key, list[_Kind]] = {}
    unusable: dict[str, str] = {}
    for facts, names in _kinds(nodes):
        network = network_of(facts, request)
        if isinstance(network, NoNetwork):
            unusable |= dict.fromkeys(names, network.cause)
        else:
            found.setdefault((network.row, network.settings), []).append((network, names))
    if not found:
        return (GangNetwork(None, frozenset(), unusable, request.key if nodes else None),)
    counts = {key: sum(len(names) for _, names in kinds) for key, kinds in found.items()}
    ordered = sorted(found, key=lambda key: _order(key, counts[key], size))
    return tuple(_option(key, found, unusable, request) for key in ordered)


def _kinds(nodes: Mapping[str, NodeFacts]) -> list[tuple[NodeFacts, list[str]]]:
    """Return the nodes by facts, those of the first name first. A FactsCache shares equal facts."""
    names: dict[int, list[str]] = {}
    for name, facts in nodes.items():
        names.setdefault(id(facts), []).append(name)
    members = sorted(names.values(), key=min)
    return [(nodes[found[0]], found) for found in members]


def _order(key: _Key, count: int, size: int) -> tuple[bool, bool, int, _Key]:
    row, settings = key
    is_enough = count >= size
    return not is_enough, is_enough and row == PLAIN, -count, (row, settings)


def _option(
    key: _Key,
    found: Mapping[_Key, list[_Kind]],
    unusable: Mapping[str, str],
    request: NetworkRequest,
) -> GangNetwork:
    kinds = found[key]
    notes = tuple(dict.fromkeys(note for item, _ in kinds for note in item.notes))
    preset = next((item.topology for item, _ in kinds if item.topology), None)
    network = replace(kinds[0][0], notes=notes, topology=preset)
    others: dict[str, str] = {}
    for other, items in found.items():
        if other != key:
            for item, names in items:
                others |= dict.fromkeys(names, f"has another network: {item.title}")
    members = frozenset(name for _, names in kinds for name in names)
    return GangNetwork(network, members, {**others, **unusable}, (request.key, key, members))
