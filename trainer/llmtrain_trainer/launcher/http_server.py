"""The pod's HTTP server, on the launcher's own event loop.

It uses no thread and no framework: the launcher forks ranks, and a fork while other threads run can
copy a held lock into the child. Everyone who reaches the port may connect. So a connection serves
one request within `READ_SECONDS`, and the oldest of more than `MAX_CONNECTIONS` is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from llmtrain_trainer.runtime.bounded_server import BoundedServer, Connection

REQUEST_LIMIT = 8192
READ_SECONDS = 10.0
MAX_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Response:
    """The body of a response."""

    body: bytes
    content_type: str


Routes = Mapping[str, Callable[[], Response]]


def serve(listener: socket.socket, routes: Routes) -> BoundedServer:
    """Serve GET requests for `routes`."""

    async def handle(connection: Connection) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                head = await connection.reader.readuntil(b"\r\n\r\n")
                connection.writer.write(respond(head, routes))
                await connection.writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client disconnected, sent no valid request, or was too slow

    return BoundedServer(listener, handle, limit=MAX_CONNECTIONS, line_limit=REQUEST_LIMIT)


def respond(head: bytes, routes: Routes) -> bytes:
    """Return the whole response to the head of a request; a connection serves one request."""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        return _encode(HTTPStatus.BAD_REQUEST, Response(b"", "text/plain"))
    method, target, _ = words
    route = routes.get(target.split("?", 1)[0])
    if route is None:
        return _encode(HTTPStatus.NOT_FOUND, Response(b"not found\n", "text/plain"))
    if method not in ("GET", "HEAD"):
        return _encode(HTTPStatus.METHOD_NOT_ALLOWED, Response(b"", "text/plain"))
    return _encode(HTTPStatus.OK, route(), head_only=method == "HEAD")


def _encode(status: HTTPStatus, response: Response, head_only: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else response.body)
