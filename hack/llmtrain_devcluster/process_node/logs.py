"""Serve container logs at the kubelet's endpoint, so that `kubectl logs` works."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from aiohttp import web

FOLLOW_SECONDS = 0.1
CHUNK_BYTES = 1 << 16


class FindLog(Protocol):
    """Find a container's log file, and a function that returns True while it may grow."""

    def __call__(
        self, namespace: str, pod_name: str, container: str, *, previous: bool
    ) -> tuple[Path, Callable[[], bool]] | None:
        """Return None if there is no such container, or it has not started."""


class LogServer:
    """A kubelet's log endpoint, on every node's address."""

    def __init__(self, find: FindLog, certificate: str, key: str):
        self._find = find
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, listener: socket.socket, addresses: Sequence[str], port: int) -> None:
        """Serve on the given socket and on all other addresses."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=self._tls).start()
        for address in addresses:
            await web.TCPSite(self._runner, address, port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        query = request.query
        found = self._find(
            where["namespace"],
            where["pod"],
            where["container"],
            previous=query.get("previous") == "true",
        )
        if found is None:
            text = f"container {where['container']} of pod {where['pod']} has no log yet"
            return web.Response(status=400, text=text)
        path, grows = found
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        tail = int(query["tailLines"]) if "tailLines" in query else None
        with contextlib.suppress(ConnectionError):
            await _send(response, path, tail, grows if query.get("follow") == "true" else None)
        return response


async def _send(
    response: web.StreamResponse, path: Path, tail: int | None, grows: Callable[[], bool] | None
) -> None:
    with path.open("rb") as log:
        if tail is not None:
            log.seek(_tail_offset(log.read(), tail))
        while True:
            # Check before reading, so that the last lines before the end are read too.
            more = grows is not None and grows()
            while chunk := log.read(CHUNK_BYTES):
                await response.write(chunk)
            if not more:
                break
            await asyncio.sleep(FOLLOW_SECONDS)
    await response.write_eof()


def _tail_offset(content: bytes, lines: int) -> int:
    if lines <= 0:
        return len(content)
    end = len(content) - content.endswith(b"\n")
    for _ in range(lines):
        end = content.rfind(b"\n", 0, max(0, end))
        if end < 0:
            return 0
    return end + 1
