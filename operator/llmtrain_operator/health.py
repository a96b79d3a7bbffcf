"""HTTP endpoints of the operator: `/healthz` and `/readyz` on one port, `/metrics` on another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from llmtrain_operator.config import Config


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

    apps = []
    probes, exported = web.Application(), web.Application()
    probes.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    probes.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    exported.router.add_get("/metrics", metrics)
    try:
        for app, port in ((probes, config.health_port), (exported, config.metrics_port)):
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
            await runner.setup()
            apps.append(runner)
            await web.TCPSite(runner, config.bind, port).start()
        yield
    finally:
        for runner in apps:
            await runner.cleanup()
