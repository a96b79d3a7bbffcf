"""The interface between the operator and the API server: plain dictionaries in and out.

All other code of the operator depends on this protocol only, so tests can inject faults.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmtrain_operator.kube.resources import Resource

Object = dict[str, Any]
PatchKind = Literal["merge", "json"]


@dataclass(frozen=True, slots=True)
class Item:
    """An object of a list or a watch."""

    object: Object
    damage: str = ""
    """Why a part of the object is missing; empty if it is complete but for managed fields."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """A page of a list."""

    items: Sequence[Item]
    version: int
    """The resourceVersion of the list."""
    continue_: str
    """The token of the next page; empty on the last one."""


class KubeApi(Protocol):
    """The requests that the operator sends. All methods raise `ApiError`.

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
    ) -> ListPage:
        """Return one page of a list of at most `limit` objects.

        Raises `TooLargeError` if the page has too many bytes. A page of one object never has.
        """
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
        """Open a watch that yields batches of raw lines; each line is a JSON event."""
        ...

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """Return one object."""
        ...

    async def create(
        self,
        resource: Resource,
        body: Object,
        namespace: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Object:
        """Create an object. With `dry_run`, only return what would be stored."""
        ...

    async def replace(
        self, resource: Resource, name: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Replace an object. Its resourceVersion prevents a lost update."""
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
        """Patch an object or one of its subresources."""
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
        """Delete an object. With `uid`, delete it only if it still has this UID."""
        ...

    async def proxy(self, name: str, namespace: str, port: int, path: str, max_bytes: int) -> bytes:
        """Return the body of an HTTP GET to a pod port, proxied by the API server."""
        ...
