"""Register nodes: Ready, and without the taint of a new node."""

from __future__ import annotations

from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.kubelet.statuses import NodeSpec, node_object, node_status, ready_condition


async def register_node(api: Api, spec: NodeSpec, address: str = "", port: int = 0) -> None:
    """Create the node, set it Ready and remove the not-ready taint.

    The node lifecycle controller would remove the taint some seconds later.
    """
    try:
        await api.create("nodes", node_object(spec))
    except ApiStatusError as error:
        if error.status != 409:
            raise
        await api.patch("nodes", spec.name, {"metadata": node_object(spec)["metadata"]})
    status = {"status": node_status(spec, address, port)}
    await api.patch("nodes", spec.name, status, subresource="status", kind="strategic")
    await api.patch("nodes", spec.name, {"spec": {"taints": None}})


async def report_ready(api: Api, name: str, status: str) -> None:
    """Set a node's Ready condition to "True", "False" or "Unknown"."""
    body = {"status": {"conditions": [ready_condition(status)]}}
    await api.patch("nodes", name, body, subresource="status", kind="strategic")
