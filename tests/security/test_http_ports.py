"""Hostile clients of the operator's own ports: probes and metrics are answered nevertheless."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from llmtrain_devcluster.processes import free_ports
from llmtrain_operator import health
from llmtrain_operator.config import parse
from llmtrain_operator.health import MAX_CONNECTIONS, serve

pytestmark = pytest.mark.unit

HOST = "127.0.0.1"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def operator_ports() -> AsyncIterator[dict[str, int]]:
    metrics, probes = free_ports(2)
    config = parse([f"--bind={HOST}", f"--metrics-port={metrics}", f"--health-port={probes}"])
    async with serve(config, CollectorRegistry(), lambda: True, lambda: True):
        yield {"/metrics": metrics, "/healthz": probes, "/readyz": probes}


async def ask(port: int, path: str) -> bytes:
    """Return the whole answer: the operator has to close the connection after it."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    found = await reader.read()
    writer.close()
    return found


async def is_closed(connection: Connection) -> bool:
    """Wait until the other side has closed a connection."""
    with contextlib.suppress(ConnectionError):
        await connection[0].read()
    connection[1].close()
    return True


async def test_a_connection_serves_one_request() -> None:
    async with operator_ports() as ports:
        for path, port in ports.items():
            found = await ask(port, path)
            assert found.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close" in found.lower()
        assert (await ask(ports["/healthz"], "/unknown")).startswith(b"HTTP/1.1 404")


async def test_1500_idle_connections_do_not_keep_out_the_probes() -> None:
    async with operator_ports() as ports:
        for path, port in ports.items():
            idle: list[Connection] = []
            for _ in range(500):
                idle.append(await asyncio.open_connection(HOST, port))
            assert (await ask(port, path)).startswith(b"HTTP/1.1 200 OK")
            # the oldest are closed to make room
            closed = idle[: 500 - MAX_CONNECTIONS]
            assert all(await asyncio.gather(*map(is_closed, closed)))
            for _, writer in idle:
                writer.close()


@pytest.mark.parametrize("part", [b"", b"G", b"GET /metrics HTTP/1.1\r\nX: 1\r\n"])
async def test_a_request_that_never_ends_is_closed(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CONNECTION_SECONDS", 0.3)
    async with operator_ports() as ports:
        connection = await asyncio.open_connection(HOST, ports["/metrics"])

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    connection[1].write(part)
                    await connection[1].drain()
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await is_closed(connection)
        dripping.cancel()


async def test_a_client_that_never_reads_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(health, "generate_latest", lambda registry: bytes(32 * 1024 * 1024))
    ended = asyncio.Event()

    def abort(transport: asyncio.Transport) -> None:
        transport.abort()
        ended.set()

    monkeypatch.setattr(health, "_abort", abort)
    async with operator_ports() as ports:
        reader, writer = await asyncio.open_connection(HOST, ports["/metrics"], limit=1024)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await ended.wait()
        size = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                size += len(chunk)
        assert size < 32 * 1024 * 1024
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x00" * 100_000, b"GET " + b"/" * 100_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000],
)
async def test_garbage_is_refused(request_bytes: bytes) -> None:
    async with operator_ports() as ports:
        connection = await asyncio.open_connection(HOST, ports["/healthz"])
        connection[1].write(request_bytes)
        assert await is_closed(connection)
        assert (await ask(ports["/healthz"], "/healthz")).startswith(b"HTTP/1.1 200 OK")
