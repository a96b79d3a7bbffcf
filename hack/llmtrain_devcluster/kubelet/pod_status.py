"""Write pod statuses and remove pods, as a kubelet does, with retries."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import aiohttp

from llmtrain_devcluster.api import Api, ApiStatusError, Object

RETRY_SECONDS = 0.5
ATTEMPTS = 20
GONE = (404, 409)
REFUSED = (400, 403, 422)
# Errors that may be temporary: OSError includes resets and timeouts.
UNREACHABLE = (aiohttp.ClientError, OSError)


async def write_status(api: Api, meta: Object, status: Object) -> bool:
    """Patch the status of this pod (by UID); return False if it is gone or the write invalid."""
    name, namespace = meta["name"], meta["namespace"]
    body = {"metadata": {"uid": meta["uid"]}, "status": status}

    async def write() -> None:
        await api.patch("pods", name, body, namespace, subresource="status", kind="strategic")

    return await _retry_request(
        write, f"write the status of pod {namespace}/{name}", when_gone=False
    )


async def remove_pod(api: Api, meta: Object) -> bool:
    """Remove this pod (by UID) from the API server, the last action of a kubelet.

    Return True once it is gone; False if the server rejects the request or is not available.
    """
    name, namespace = meta["name"], meta["namespace"]

    async def remove() -> None:
        await api.delete("pods", name, namespace, grace_seconds=0, uid=meta["uid"])

    return await _retry_request(remove, f"remove pod {namespace}/{name}", when_gone=True)


async def _retry_request(
    request: Callable[[], Awaitable[None]], what: str, *, when_gone: bool
) -> bool:
    """Retry a request until it succeeds; print the last error if it does not."""
    last_error = ""
    for _ in range(ATTEMPTS):
        try:
            await request()
            return True
        except ApiStatusError as error:
            if error.status in GONE:
                return when_gone
            last_error = str(error)
            if error.status in REFUSED:
                break
        except UNREACHABLE as error:
            last_error = repr(error)
        await asyncio.sleep(RETRY_SECONDS)
    print(f"cannot {what}: {last_error}", file=sys.stderr, flush=True)
    return False
