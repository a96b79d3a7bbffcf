"""Who sits where: from a request and a snapshot to a placement, or to the reason there is none."""

from llmtrain_core.placement.place import eligible, place
from llmtrain_core.placement.types import (
    PlacedNode,
    Placement,
    Request,
    Unplaceable,
    extra_resources,
)

__all__ = [
    "PlacedNode", "Placement", "Request", "Unplaceable", "eligible", "extra_resources", "place",
]  # fmt: skip
