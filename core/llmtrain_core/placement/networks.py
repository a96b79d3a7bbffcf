"""Placement of a gang together with its network: both depend on which nodes it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmtrain_core.network import GangNetwork, NetworkRequest, NodeFacts, gang_networks
from llmtrain_core.placement.filter import eligible
from llmtrain_core.placement.place import why_unplaceable
from llmtrain_core.placement.types import Request, device_tolerations
from llmtrain_core.topology.inventory import Snapshot


def networks_for(
    request: Request, network: NetworkRequest, snapshot: Snapshot, facts: Mapping[str, NodeFacts]
) -> tuple[GangNetwork, ...]:
    """Return the networks that a gang could use on the nodes of a cluster, best first.

    Only nodes that could hold a block if they were empty count. Taints of devices do not matter
    here: the network decides whether the pods tolerate them. `facts` are those of all nodes.
    """
    names = eligible(_tolerating_devices(request, snapshot), snapshot)
    could = {name: found for name, found in facts.items() if name in names}
    return gang_networks(could, network, request.nodes + request.spares)


def _tolerating_devices(request: Request, snapshot: Snapshot) -> Request:
    """Return the request with tolerations for the taints that are named after own devices."""
    keys = {t.key for n in snapshot.nodes for t in n.taints if t.key in n.allocatable}
    return replace(request, tolerations=(*request.tolerations, *device_tolerations(keys)))


def on_network(request: Request, network: NetworkRequest, snapshot: Snapshot) -> Request:
    """Return the request on the best network on which the gang fits now, else on the best one."""
    facts = {node.name: NodeFacts.of(node) for node in snapshot.nodes}
    options = networks_for(request, network, snapshot, facts)
    wanted = [request.with_network(option) for option in options]
    fitting = (each for each in wanted if why_unplaceable(each, snapshot) is None)
    return wanted[0] if len(wanted) == 1 else next(fitting, wanted[0])
