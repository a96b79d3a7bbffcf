"""Strangers at port 9400 of a pod: status and metrics stay readable."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from llmtrain_trainer.launcher import http_server
from llmtrain_trainer.launcher.http_server import Response, serve
from llmtrain_trainer.runtime.bounded_server import BoundedServer
from llmtrain_trainer.runtime.sockets import listen

pytestmark = [pytest.mark.unit, pytest.mark.timeout(120)]

ADDRESS = "127.0.0.1"
BODY = b"x" * 8_000_000
ROUTES = {
    "/status": lambda: Response(b"{}", "application/json"),
    "/metrics": lambda: Response(BODY, "text/plain"),
}


async def _read(server: BoundedServer, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(ADDRESS, server.port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_the_status_is_read_beside_idle_connections() -> None:
    server = serve(listen(ADDRESS), ROUTES)
    idle = [await asyncio.open_connection(ADDRESS, server.port) for _ in range(300)]
    assert (await _read(server, "/status")).endswith(b"\r\n\r\n{}")
    assert (await _read(server, "/metrics")).endswith(BODY)
    assert len(server._strangers) <= http_server.MAX_CONNECTIONS
    for _, writer in idle:
        writer.transport.abort()
    server.close()


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n\r\n"], ids=["silent", "greedy"])
async def test_who_does_not_read_or_write_in_time_is_disconnected(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "READ_SECONDS", 0.1)
    monkeypatch.setattr("llmtrain_trainer.runtime.bounded_server.CLOSE_SECONDS", 0.1)
    server = serve(listen(ADDRESS), ROUTES)
    reader, writer = await asyncio.open_connection(ADDRESS, server.port)
    writer.write(sent)
    received = 0
    if sent:
        while not server._strangers:  # until it is accepted
            await asyncio.sleep(0.01)
        while server._strangers:  # it reads nothing until it is disconnected
            await asyncio.sleep(0.01)
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(1 << 20):
            received += len(data)
    assert received < len(BODY)
    writer.close()
    server.close()
