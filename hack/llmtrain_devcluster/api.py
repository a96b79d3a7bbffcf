"""A small asynchronous client of the Kubernetes API that takes and returns plain JSON.

A resource is named by its plural, with group and version in front unless it is core/v1:
`pods`, `apps/v1/deployments`, `llmtrain.dev/v1alpha1/llmtrainingjobs`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

Object = dict[str, Any]

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
FIELD_MANAGER = "llmtrain-devcluster"
WAIT_SECONDS = 150.0
"""Usual limit of waits for an object: more than the longest back-off of the operator, 72 s."""


class ApiStatusError(RuntimeError):
    """The API server rejected a request, with `status`, `reason` and `details`."""

    def __init__(self, status: int, reason: str, message: str, details: Object | None = None):
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}


class WaitTimeoutError(TimeoutError):
    """An object did not reach the expected state; the message has its last status."""


def resource_path(resource: str, namespace: str | None = None, name: str | None = None) -> str:
    """Return the URL path of a resource, in all or one namespace, or of one object."""
    *group, plural = resource.split("/")
    if len(group) not in (0, 2):
        raise ValueError(f"{resource!r} is neither PLURAL nor GROUP/VERSION/PLURAL")
    parts = ["apis", *group] if group else ["api", "v1"]
    parts += ["namespaces", namespace] if namespace else []
    return "/" + "/".join([*parts, plural, *([name] if name else [])])


class Api:
    """A connection to one API server as one user; use it within one event loop."""

    def __init__(self, server: str, token: str, ca_file: Path):
        self.server = server
        self._headers = {"Authorization": f"Bearer {token}"}
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context(cafile=str(self._ca_file))
            self._session = aiohttp.ClientSession(
                base_url=self.server,
                headers=self._headers,
                connector=aiohttp.TCPConnector(ssl=context, limit=64),
                timeout=aiohttp.ClientTimeout(total=30),
            )
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send one request; return parsed JSON, or the text of another content type."""
        async with self._open().request(
            method,
            path,
            params=dict(query or {}),
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
        ) as response:
            text = await response.text()
            is_json = "json" in response.content_type
            if response.status >= 400:
                raise _error(response.status, text)
            return json.loads(text) if is_json and text else text

    async def send(
        self, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] = {}
    ) -> bytes:
        """Send bytes as they are, and return the response as it is.

        For objects that Python cannot encode or decode, such as deeply nested ones.
        """
        headers = {"Content-Type": "application/json", **headers}
        async with self._open().request(method, path, data=data, headers=headers) as response:
            body = await response.read()
            if response.status >= 400:
                raise _error(response.status, body.decode(errors="replace"))
            return body

    async def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        """Read one object."""
        answer: Object = await self.request("GET", resource_path(resource, namespace, name))
        return answer

    async def list(
        self,
        resource: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
    ) -> list[Object]:
        """Read all objects of a resource that match the selectors."""
        answer = await self.list_page(resource, namespace, labels=labels, fields=fields)
        items: list[Object] = answer["items"]
        return items

    async def list_page(
        self,
        resource: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
    ) -> Object:
        """Read a list with its metadata: its resourceVersion is where a watch starts."""
        answer: Object = await self.request(
            "GET", resource_path(resource, namespace), query=_selectors(labels, fields)
        )
        return answer

    async def create(self, resource: str, body: Object, namespace: str | None = None) -> Object:
        """Create an object."""
        answer: Object = await self.request("POST", resource_path(resource, namespace), body=body)
        return answer

    async def replace(
        self,
        resource: str,
        name: str,
        body: Object,
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        """Replace an object, or a subresource of it."""
        path = _with_subresource(resource_path(resource, namespace, name), subresource)
        answer: Object = await self.request("PUT", path, body=body)
        return answer

    async def patch(
        self,
        resource: str,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        subresource: str = "",
        kind: str = "merge",
    ) -> Object:
        """Patch an object; `kind` is merge, json, strategic or apply (server-side)."""
        path = _with_subresource(resource_path(resource, namespace, name), subresource)
        query = {"fieldManager": FIELD_MANAGER}
        if kind == "apply":
            query["force"] = "true"
        answer: Object = await self.request(
            "PATCH", path, query=query, body=body, content_type=PATCH_TYPES[kind]
        )
        return answer

    async def resize(
        self, pod: str, container: str, requests: Mapping[str, str], namespace: str
    ) -> Object:
        """Change requests of a container of a running pod."""
        containers = [{"name": container, "resources": {"requests": dict(requests)}}]
        body = {"spec": {"containers": containers}}
        return await self.patch(
            "pods", pod, body, namespace, subresource="resize", kind="strategic"
        )

    async def delete(
        self,
        resource: str,
        name: str,
        namespace: str | None = None,
        *,
        grace_seconds: int | None = None,
        propagation: str = "Background",
        uid: str | None = None,
        missing_ok: bool = False,
    ) -> None:
        """Delete an object; with `uid`, only if it is still the same object.

        `missing_ok` also ignores an object that was replaced by another one (409).
        """
        options: Object = {"propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self.request("DELETE", resource_path(resource, namespace, name), body=options)
        except ApiStatusError as error:
            if not (missing_ok and error.status in (404, 409)):
                raise

    async def apply(self, manifest: Object, namespace: str | None = None) -> Object:
        """Create or update any object by server-side apply, like `kubectl apply --server-side`."""
        group_version, kind = manifest["apiVersion"], manifest["kind"]
        plural, namespaced = await self._plural(group_version, kind)
        resource = plural if group_version == "v1" else f"{group_version}/{plural}"
        where = manifest["metadata"].get("namespace") or namespace if namespaced else None
        return await self.patch(
            resource, manifest["metadata"]["name"], manifest, where, kind="apply"
        )

    async def _plural(self, group_version: str, kind: str) -> tuple[str, bool]:
        key = (group_version, kind)
        if key not in self._plurals:
            prefix = "/api" if group_version == "v1" else "/apis"
            found = await self.request("GET", f"{prefix}/{group_version}")
            for entry in found["resources"]:
                if "/" not in entry["name"]:
                    known = (entry["name"], entry["namespaced"])
                    self._plurals[(group_version, entry["kind"])] = known
        if key not in self._plurals:
            raise ApiStatusError(404, "NotFound", f"the server has no {kind} in {group_version}")
        return self._plurals[key]

    async def watch(
        self,
        resource: str,
        namespace: str | None = None,
        *,
        version: str = "",
        labels: str = "",
        fields: str = "",
        seconds: int = 300,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yield (ADDED|MODIFIED|DELETED|BOOKMARK, object) until the server ends the watch.

        An ERROR event (410 Gone: list again) is raised as ApiError.
        """
        query = _selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        if version:
            query["resourceVersion"] = version
        async with self._open().get(
            resource_path(resource, namespace),
            params=query,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        ) as response:
            if response.status >= 400:
                raise _error(response.status, await response.text())
            async for line in _lines(response.content):
                try:
                    event = json.loads(line)
                except RecursionError:
                    # An object that is nested this deeply is of no use to any caller.
                    continue
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), json.dumps(event["object"]))
                yield event["type"], event["object"]

    async def logs(
        self, name: str, namespace: str, *, container: str = "", query: Mapping[str, str] = {}
    ) -> str:
        """Read a pod's log."""
        selected = {"container": container} if container else {}
        path = resource_path("pods", namespace, name) + "/log"
        return str(await self.request("GET", path, query={**query, **selected}))

    async def wait_for(
        self,
        resource: str,
        name: str,
        condition: Callable[[Object | None], bool],
        namespace: str | None = None,
        *,
        seconds: float = WAIT_SECONDS,
        every: float | None = None,
    ) -> Object:
        """Poll an object until `condition` is true; its argument is None if there is no object.

        Without `every`, the time between two requests grows to a quarter of a second: long waits
        cost the API server little.
        """
        deadline = time.monotonic() + seconds
        delay = every or 0.05
        while True:
            try:
                found: Object | None = await self.get(resource, name, namespace)
            except ApiStatusError as error:
                if error.status != 404:
                    raise
                found = None
            if condition(found):
                return found or {}
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"{resource} {namespace or ''}/{name} is not as expected after {seconds} s: "
                    f"{json.dumps(found and found.get('status'))[:2000]}"
                )
            await asyncio.sleep(delay)
            delay = every or min(0.25, 1.2 * delay)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length (StreamReader's own iteration has a limit)."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _selectors(labels: str, fields: str) -> dict[str, str]:
    pairs = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in pairs.items() if value}


def _with_subresource(path: str, subresource: str) -> str:
    return f"{path}/{subresource}" if subresource else path


def _error(status: int, text: str) -> ApiStatusError:
    try:
        parsed = json.loads(text)
        reason, message = parsed.get("reason", ""), parsed.get("message", text)
        return ApiStatusError(status, reason, message, parsed.get("details"))
    except (ValueError, AttributeError):
        return ApiStatusError(status, "", text[:500])
