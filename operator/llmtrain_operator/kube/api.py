"""The seam between the operator and the API server: plain dicts in, plain dicts out.

Everything else in the operator talks to this protocol, so that a test can put a fault in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from llmtrain_operator.kube.resources import Resource

Object = dict[str, Any]
PatchKind = Literal["merge", "json"]


class KubeApi(Protocol):
    """What the operator asks of a cluster. All methods raise `ApiError`s.

    Writes are fenced: they raise `LeaseLostError` when this process is not the leader.
    """

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 500,
        continue_: str = "",
    ) -> Object:
        """Read one page of a list, with the list's metadata."""
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        version: str,
        labels: str = "",
        fields: str = "",
        seconds: int = 300,
    ) -> AbstractAsyncContextManager[AsyncIterator[list[bytes]]]:
        """Open a watch; it yields batches of raw lines, each a JSON event."""
        ...

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """Read one object."""
        ...

    async def create(
        self, resource: Resource, body: Object, namespace: str | None = None
    ) -> Object:
        """Create an object."""
        ...

    async def replace(
        self, resource: Resource, name: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Replace an object; its resourceVersion guards against a lost update."""
        ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        kind: PatchKind = "merge",
        sub: str = "",
    ) -> Object:
        """Patch an object, or a subresource of it."""
        ...

    async def patch_status(
        self, resource: Resource, name: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Merge-patch the status subresource."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str = "",
        propagation: str = "Background",
    ) -> None:
        """Delete an object; with `uid`, only if it is still that very one."""
        ...

    async def proxy(self, name: str, namespace: str, port: int, path: str) -> bytes:
        """Read a path from a pod's port, through the API server."""
        ...
