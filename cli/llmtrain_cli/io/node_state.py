"""Whether jobs start on a node."""

from __future__ import annotations

from typing import Literal

from llmtrain_core.topology.inventory import Node

NodeState = Literal["ready", "not ready", "cordoned", "avoided"]


def node_state(node: Node) -> NodeState:
    """Return "ready", or why no pod of a job starts on a node, whatever the job is."""
    if not node.ready:
        return "not ready"
    if node.cordoned:
        return "cordoned"
    return "avoided" if node.avoided else "ready"
