"""What the API server says to a request, once new policies and rights are in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from llmtrain_devcluster.api import Api, ApiStatusError, Object

OWNER = {
    "apiVersion": "llmtrain.dev/v1alpha1",
    "kind": "LLMTrainingJob",
    "name": "job",
    "uid": "1",
    "controller": True,
}


async def verdict(request: Callable[[str], Awaitable[Any]]) -> str:
    """Return why a request is refused; empty if it is admitted."""
    try:
        await request("All")
    except ApiStatusError as error:
        return str(error)
    return ""


async def settled(request: Callable[[str], Awaitable[Any]], text: str) -> str:
    """Wait for a verdict: new policies and rights are in force only after a moment."""
    found = ""
    for _ in range(200):
        found = await verdict(request)
        if (text in found) if text else not found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"expected {text!r}, got {found!r}")


def create_pod(
    api: Api, namespace: str, spec: Object, owners: list[Object]
) -> Callable[[str], Awaitable[Any]]:
    metadata = {"name": "pod", "ownerReferences": owners}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/pods"
    return lambda dry_run: api.request("POST", path, query={"dryRun": dry_run}, body=body)
