"""HTTP endpoints of the operator: `/healthz` and `/readyz` on one port, `/metrics` on another.

Everyone who reaches the ports may connect. So a connection serves one request and ends after
`CONNECTION_SECONDS` at the latest, and each port has a limit of open connections. At the limit the
oldest one is closed: connections that send nothing cannot keep out the probes of the kubelet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from llmtrain_operator.config import Config

CONNECTION_SECONDS = 10.0
"""Time to send a request and to read the response; Prometheus gives up after 10 s by default."""
MAX_CONNECTIONS = 64
"""Limit of open connections of a port."""


@asynccontextmanager
async def serve(
    config: Config,
    registry: CollectorRegistry,
    healthy: Callable[[], bool],
    ready: Callable[[], bool],
) -> AsyncIterator[None]:
    """Serve the endpoints while the context is open. A failed probe returns 503."""

    async def metrics(_request: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(check: Callable[[], bool]) -> Callable[[web.Request], object]:
        async def handler(_request: web.Request) -> web.Response:
            ok = check()
            return web.Response(text="ok" if ok else "no", status=200 if ok else 503)

        return handler

    probes, exported = web.Application(), web.Application()
    probes.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    probes.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    exported.router.add_get("/metrics", metrics)
    async with AsyncExitStack() as stack:
        for app, port in ((probes, config.health_port), (exported, config.metrics_port)):
            await stack.enter_async_context(_listen(app, config.bind, port))
        yield


@asynccontextmanager
async def _listen(app: web.Application, host: str, port: int) -> AsyncIterator[None]:
    app.on_response_prepare.append(_close_after_response)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        assert runner.server is not None
        factory = _BoundedConnections(runner.server)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, host, port, backlog=MAX_CONNECTIONS)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


async def _close_after_response(_request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()
    response.headers["Connection"] = "close"


class _BoundedConnections:
    """Creates the protocol of each connection to a port."""

    def __init__(self, handlers: Callable[[], asyncio.Protocol]):
        self._handlers = handlers
        self.transports: dict[_Connection, asyncio.BaseTransport] = {}
        """Open connections, the oldest first."""

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self, self._handlers())

    def add(self, connection: _Connection, transport: asyncio.BaseTransport) -> None:
        """Add a connection; at the limit, close the oldest one."""
        self.transports[connection] = transport
        if len(self.transports) > MAX_CONNECTIONS:
            _abort(self.transports.pop(next(iter(self.transports))))


class _Connection(asyncio.Protocol):
    """Forwards a connection to its handler, and ends it after CONNECTION_SECONDS."""

    def __init__(self, port: _BoundedConnections, handler: asyncio.Protocol):
        self._port = port
        self._handler = handler
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._port.add(self, transport)
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(CONNECTION_SECONDS, _abort, transport)
        self._handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.transports.pop(self, None)
        if self._end is not None:
            self._end.cancel()
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


def _abort(transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.Transport)
    transport.abort()
