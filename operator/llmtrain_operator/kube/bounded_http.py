"""The one function that sends the HTTP requests of the operator, and what it accepts as an answer.

A tenant writes the answers of pods, also those that pass through the API server. So no redirect is
followed, no cookie is kept, nothing is decompressed, and the body has a limit that holds while it
is read. The caller sets the limits of time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

READ_BYTES = 64 * 1024


class RefusedAnswerError(aiohttp.ClientError):
    """The answer is encoded, or it is larger than the limit of the request."""


class LargeAnswerError(RefusedAnswerError):
    """The answer is larger than the limit of the request."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def successful(self) -> bool:
        """Whether the status is 2xx. A redirect is not successful."""
        return 200 <= self.status < 300


def new_session(
    connector: aiohttp.TCPConnector | None = None, read_buffer: int = READ_BYTES
) -> aiohttp.ClientSession:
    """Return a session without state: no cookies, no settings of the environment."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=read_buffer,
    )


@asynccontextmanager
async def open_answer(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    timeout: aiohttp.ClientTimeout,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    **transport: Any,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and yield its answer, whose body is not read yet."""
    async with session.request(
        method,
        url,
        timeout=timeout,
        headers={**(headers or {}), "Accept-Encoding": "identity"},
        data=body,
        allow_redirects=False,
        **transport,
    ) as response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            response.close()
            raise RefusedAnswerError("the answer is compressed")
        yield response


async def send(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    timeout: aiohttp.ClientTimeout,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    **transport: Any,
) -> HttpAnswer:
    """Send a request and return its answer.

    Raise `aiohttp.ClientError`, `TimeoutError` or `OSError` if there is no acceptable answer.
    """
    async with open_answer(session, method, url, timeout, headers, body, **transport) as response:
        content = await _read(response, max_bytes)
        return HttpAnswer(response.status, response.headers, content)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(READ_BYTES):
        content += chunk
        if len(content) > max_bytes:
            response.close()
            raise LargeAnswerError(f"the answer has more than {max_bytes} bytes")
    return bytes(content)
