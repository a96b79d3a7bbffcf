"""Follows all pods with one list and one watch, through disconnects and expired versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp

from llmtrain_devcluster.api import Api, ApiStatusError, Object

RETRY_SECONDS = 0.3


async def follow(
    api: Api, resource: str, fields: str = "", gap: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[str, Object]]:
    """Yield (ADDED|MODIFIED|DELETED, object) for ever.

    A connection that breaks is taken up where it ended. Where the server has forgotten that point,
    `gap` is called, all is listed again, and what went meanwhile is yielded as deleted.
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
        except ApiStatusError:
            if version:
                gap()
            version = ""
            await asyncio.sleep(RETRY_SECONDS)
