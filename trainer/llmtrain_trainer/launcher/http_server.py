"""The pod's HTTP endpoint, on the launcher's own event loop.

No thread and no framework: the launcher forks ranks, and forking beside threads may copy a held
lock into the child.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

REQUEST_LIMIT = 8192
READ_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str


Pages = Mapping[str, Callable[[], Page]]


async def serve(address: str, port: int, pages: Pages) -> asyncio.Server:
    """Serve GET requests for `pages` on one address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = reader.readuntil(b"\r\n\r\n")
            head = await asyncio.wait_for(request, READ_SECONDS)
            writer.write(answer(head, pages))
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that went away or never asked
        finally:
            writer.close()

    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = handle
    return await asyncio.start_server(
        handler, address, port, limit=REQUEST_LIMIT, reuse_address=True, backlog=64
    )


def answer(head: bytes, pages: Pages) -> bytes:
    """Return the whole response to a request's head; every connection serves one request."""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        return _response(HTTPStatus.BAD_REQUEST, Page(b"", "text/plain"))
    method, target, _ = words
    page = pages.get(target.split("?", 1)[0])
    if page is None:
        return _response(HTTPStatus.NOT_FOUND, Page(b"not found\n", "text/plain"))
    if method not in ("GET", "HEAD"):
        return _response(HTTPStatus.METHOD_NOT_ALLOWED, Page(b"", "text/plain"))
    return _response(HTTPStatus.OK, page(), bodyless=method == "HEAD")


def _response(status: HTTPStatus, page: Page, bodyless: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if bodyless else page.body)
