"""The `KubeApi` implementation: configuration, authentication and transport of `kubernetes.aio`.

The typed models of that library are not used. They take half a millisecond per event and reject
unknown fields.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from prometheus_client import Counter

from llmtrain_operator.errors import ConfigError, TooLargeError, UnavailableError, api_error
from llmtrain_operator.kube.api import ListPage, Object, PatchKind
from llmtrain_operator.kube.bounded_http import HttpAnswer, LargeAnswerError, open_answer, send
from llmtrain_operator.kube.decoding import read_object, read_page
from llmtrain_operator.kube.resources import PODS, Resource
from llmtrain_operator.kube.transport import (
    READ_BUFFER_BYTES,
    Connections,
    connection_error,
    response_error,
)

FIELD_MANAGER = "llmtrain-operator"
REQUEST_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
PROXY_TIMEOUT_SECONDS = 5.0
WATCH_TIMEOUT_SECONDS = 120.0
"""A watch without any event for this long is closed (bookmarks arrive once a minute)."""
MAX_OBJECT_BYTES = 32 * 1024 * 1024
"""Limit of the answer about one object. The API server stores at most 1.5 MiB of it."""
PAGE_BYTES = 8 * 1024 * 1024
"""Limit of a page of a list. The caller lists fewer objects at once if they are larger."""

_WRITE = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Ignore"}
"""Query of a write. By default the API server looks for unknown and duplicate fields, and warns
about them in a header that the operator does not read. It drops unknown ones in any case."""

_PATCH_TYPES: Mapping[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Address and credentials of the API server, for libraries that open their own connection."""

    server: str
    ca_path: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None
    insecure: bool
    rotates: bool
    """Whether the token is a mounted file that the kubelet rotates."""


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """Load the configuration from the given file, $KUBECONFIG or the pod's service account."""
    configuration: Configuration = type.__call__(Configuration)
    path = kubeconfig or os.environ.get("KUBECONFIG") or _home_kubeconfig()
    try:
        if path:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=path,
                client_configuration=configuration,
                persist_config=False,
            )
        else:
            load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration
            )
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"no API server is configured ({error}); set KUBECONFIG or --kubeconfig"
        ) from error
    return configuration


def _home_kubeconfig() -> str | None:
    """Return the kubeconfig in the home folder, or None if there is none or inside a pod."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    try:
        path = Path("~/.kube/config").expanduser()
    except RuntimeError:  # the user has no home folder
        return None
    return str(path) if path.exists() else None


class KubeClient:
    """Client of one API server as one user. Use it inside one event loop."""

    def __init__(
        self,
        configuration: Configuration,
        requests: Counter,
        fence: Callable[[], None] = lambda: None,
    ):
        self._configuration = configuration
        self._connections = Connections(configuration)
        self._requests = requests
        self.fence = fence

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def credentials(self) -> Credentials:
        """Return the current credentials."""
        headers = await self._headers()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return Credentials(
            server=self._configuration.host,
            ca_path=self._configuration.ssl_ca_cert,
            token=token.strip() if scheme.lower() == "bearer" else None,
            certificate_path=self._configuration.cert_file,
            private_key_path=self._configuration.key_file,
            insecure=not self._configuration.verify_ssl,
            rotates=self._configuration.refresh_api_key_hook is not None,
        )

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
        query = _query(labelSelector=labels, fieldSelector=fields, limit=str(limit))
        if continue_:
            query["continue"] = continue_
        path = resource.path(namespace)
        max_bytes = PAGE_BYTES if limit > 1 else MAX_OBJECT_BYTES
        answer = await self._request("list", resource, "GET", path, query, max_bytes=max_bytes)
        if not answer.successful:
            raise response_error(answer)
        return read_page(answer.body)

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
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            timeoutSeconds=str(seconds),
            resourceVersion=version,
            labelSelector=labels,
            fieldSelector=fields,
        )
        return self._watch(resource, resource.path(namespace), query)

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """Return one object."""
        return await self._json("get", resource, "GET", resource.path(namespace, name))

    async def create(
        self,
        resource: Resource,
        body: Object,
        namespace: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Object:
        """Create an object. With `dry_run`, only return what would be stored."""
        path = resource.path(namespace)
        query = _WRITE | _query(dryRun="All" if dry_run else "")
        return await self._json("create", resource, "POST", path, query, body)

    async def replace(
        self, resource: Resource, name: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Replace an object. Its resourceVersion prevents a lost update."""
        path = resource.path(namespace, name)
        return await self._json("update", resource, "PUT", path, _WRITE, body)

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
        path = resource.path(namespace, name, sub)
        return await self._json(
            "patch", resource, "PATCH", path, _WRITE, body, content_type=_PATCH_TYPES[kind]
        )

    async def patch_status(
        self, resource: Resource, name: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Merge-patch the status subresource."""
        return await self.patch(resource, name, body, namespace, sub="status")

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
        options: Object = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._json("delete", resource, "DELETE", resource.path(namespace, name), body=options)

    async def proxy(self, name: str, namespace: str, port: int, path: str, max_bytes: int) -> bytes:
        """Return the body of an HTTP GET to a pod port, proxied by the API server."""
        target = PODS.path(namespace, f"{name}:{port}", "proxy") + path
        target = target.replace("%3A", ":")
        answer = await self._request(
            "proxy", PODS, "GET", target, timeout=PROXY_TIMEOUT_SECONDS, max_bytes=max_bytes
        )
        if not answer.successful:
            # The pod may have written the body, so it is no Status of the API server.
            raise api_error(answer.status, "", "the pod or the API server refuses the request")
        return answer.body

    async def _headers(self, content_type: str = "application/json") -> dict[str, str]:
        try:
            settings = (await self._configuration.auth_settings()).get("BearerToken")
        except Exception as error:
            # A hook of the library reads the token file again; a missing file is temporary.
            raise UnavailableError(
                0, "NoCredentials", f"{type(error).__name__}: {error}"[:300]
            ) from error
        auth = {str(settings["key"]): str(settings["value"])} if settings else {}
        return {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": FIELD_MANAGER,
            **auth,
        }

    async def _json(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        if method != "GET":
            self.fence()
        answer = await self._request(
            verb, resource, method, path, query, body, content_type, max_bytes=MAX_OBJECT_BYTES
        )
        if not answer.successful:
            raise response_error(answer)
        decoded: Object = read_object(answer.body)
        return decoded

    async def _request(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_TIMEOUT_SECONDS,
        *,
        max_bytes: int,
    ) -> HttpAnswer:
        code = "0"
        try:
            answer = await send(
                self._connections.session(),
                method,
                self._url(path, query),
                aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_SECONDS),
                max_bytes,
                await self._headers(content_type),
                None if body is None else json.dumps(body).encode(),
                **self._connections.options(),
            )
            code = str(answer.status)
        except LargeAnswerError as error:
            raise TooLargeError(0, "TooLarge", str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise connection_error(error) from error
        finally:
            self._requests.labels(verb, resource.plural, code).inc()
        return answer

    @asynccontextmanager
    async def _watch(
        self, resource: Resource, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=WATCH_TIMEOUT_SECONDS
        )
        code = "0"
        try:
            async with open_answer(
                self._connections.session(),
                "GET",
                self._url(path, query),
                limits,
                await self._headers(),
                **self._connections.options(),
            ) as response:
                code = str(response.status)
                self._requests.labels("watch", resource.plural, code).inc()
                if response.status != 200:
                    body = await response.content.read(READ_BUFFER_BYTES)
                    raise response_error(HttpAnswer(response.status, response.headers, body))
                try:
                    yield _lines(response.content)
                finally:
                    response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if code == "0":
                self._requests.labels("watch", resource.plural, code).inc()
            raise connection_error(error) from error

    def _url(self, path: str, query: Mapping[str, str] | None) -> str:
        base = f"{self._configuration.host}{path}"
        return f"{base}?{urlencode(query)}" if query else base


def _query(**pairs: str) -> dict[str, str]:
    return {key: value for key, value in pairs.items() if value}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[list[bytes]]:
    """Split a stream into batches of complete lines of any length.

    Yield to the event loop after every batch, so that a busy stream does not starve other tasks.
    """
    rest: list[bytes] = []
    async for chunk in stream.iter_any():
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            rest.append(tail)
            continue
        whole = b"".join([*rest, head])
        rest = [tail] if tail else []
        yield [line for line in whole.split(b"\n") if line]
        await asyncio.sleep(0)
