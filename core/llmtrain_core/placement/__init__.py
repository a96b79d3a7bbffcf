"""Placement: choose a node for every block of ranks of a job."""

from llmtrain_core.placement.cost import cost_of
from llmtrain_core.placement.filter import eligible
from llmtrain_core.placement.place import place, why_unplaceable
from llmtrain_core.placement.types import (
    Alternative,
    PlacedNode,
    Placement,
    PlacementCost,
    Request,
    Unplaceable,
    extra_resources,
)

__all__ = [
    "Alternative",
    "PlacedNode",
    "Placement",
    "PlacementCost",
    "Request",
    "Unplaceable",
    "cost_of",
    "eligible",
    "extra_resources",
    "place",
    "why_unplaceable",
]
