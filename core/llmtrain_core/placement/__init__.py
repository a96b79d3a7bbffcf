"""Placement: choose a node for every block of ranks of a job."""

from llmtrain_core.placement.cost import cost_of
from llmtrain_core.placement.filter import eligible, obstacles_text, start_obstacles
from llmtrain_core.placement.networks import networks_for, on_network
from llmtrain_core.placement.place import place, why_unplaceable
from llmtrain_core.placement.types import (
    DOMAIN_TOLERANCE,
    Alternative,
    PlacedNode,
    Placement,
    PlacementCost,
    Request,
    Unplaceable,
    device_tolerations,
    extra_resources,
    node_needs,
    sidecar_resources,
    with_added,
)

__all__ = [
    "DOMAIN_TOLERANCE",
    "Alternative",
    "PlacedNode",
    "Placement",
    "PlacementCost",
    "Request",
    "Unplaceable",
    "cost_of",
    "device_tolerations",
    "eligible",
    "extra_resources",
    "networks_for",
    "node_needs",
    "obstacles_text",
    "on_network",
    "place",
    "sidecar_resources",
    "start_obstacles",
    "why_unplaceable",
    "with_added",
]
