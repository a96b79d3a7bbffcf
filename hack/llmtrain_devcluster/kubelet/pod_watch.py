"""List and watch a resource across disconnects and expired resource versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp

from llmtrain_devcluster.api import Api, ApiStatusError, Object

RETRY_SECONDS = 0.3
BUSY = (429, 500, 503)
"""Statuses of a server that is overloaded for a moment: it has lost no revision."""


async def follow(
    api: Api, resource: str, fields: str = "", gap: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[str, Object]]:
    """Yield (ADDED|MODIFIED|DELETED, object) forever.

    After a disconnect or while the server is busy, the watch resumes at the last resource version.
    If that version has expired, `gap` is called, all objects are listed again, and removed objects
    are yielded as deleted.
    """
    known: dict[str, Object] = {}
    version = ""
    while True:
        try:
            if not version:
                page = await api.list_page(resource, fields=fields)
                version = page["metadata"]["resourceVersion"]
                items = {item["metadata"]["uid"]: item for item in page["items"]}
                for uid in known.keys() - items.keys():
                    yield "DELETED", known.pop(uid)
                for uid, item in items.items():
                    known[uid] = item
                    yield "MODIFIED", item
            async for kind, item in api.watch(resource, version=version, fields=fields):
                version = item["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                uid = item["metadata"]["uid"]
                if kind == "DELETED":
                    known.pop(uid, None)
                else:
                    known[uid] = item
                yield kind, item
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(RETRY_SECONDS)
        except ApiStatusError as error:
            if error.status not in BUSY:
                if version:
                    gap()
                version = ""
            await asyncio.sleep(RETRY_SECONDS)
