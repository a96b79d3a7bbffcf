"""Readiness probes over HTTP and TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

Object = dict[str, Any]


def _port(container: Object, port: int | str) -> int:
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    return 0


async def succeeds(probe: Object, container: Object, address: str) -> bool:
    """Run a probe once. A probe of an unsupported kind always succeeds."""
    seconds = float(probe.get("timeoutSeconds", 1))
    try:
        async with asyncio.timeout(seconds):
            if "httpGet" in probe:
                return await _http(probe["httpGet"], container, address)
            if "tcpSocket" in probe:
                check = probe["tcpSocket"]
                host = check.get("host") or address
                _, writer = await asyncio.open_connection(host, _port(container, check["port"]))
                writer.close()
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False
    return True


async def _http(check: Object, container: Object, address: str) -> bool:
    scheme = check.get("scheme", "HTTP").lower()
    host = check.get("host") or address
    url = f"{scheme}://{host}:{_port(container, check['port'])}{check.get('path', '/')}"
    headers = {header["name"]: header["value"] for header in check.get("httpHeaders") or ()}
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as response,
    ):
        return 200 <= response.status < 400


async def follow_readiness(
    probe: Object, container: Object, address: str, report: Callable[[bool], None]
) -> None:
    """Probe forever and report when the container becomes ready or unready."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    ready, run = False, 0
    while True:
        good = await succeeds(probe, container, address)
        run = run + 1 if good != ready else 0
        needed = probe.get("successThreshold", 1) if good else probe.get("failureThreshold", 3)
        if good != ready and run >= needed:
            ready, run = good, 0
            report(ready)
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
