"""Who sits where: from a request and a snapshot to a placement, or to the reason there is none."""

from llmtrain_core.placement.cost import cost_of
from llmtrain_core.placement.filter import eligible
from llmtrain_core.placement.place import place, refusal
from llmtrain_core.placement.types import (
    Alternative,
    Cost,
    PlacedNode,
    Placement,
    Request,
    Unplaceable,
    extra_resources,
)

__all__ = [
    "Alternative",
    "Cost",
    "PlacedNode",
    "Placement",
    "Request",
    "Unplaceable",
    "cost_of",
    "eligible",
    "extra_resources",
    "place",
    "refusal",
]
