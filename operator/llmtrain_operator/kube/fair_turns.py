"""Turns that namespaces take in rotation, so that the jobs of one tenant do not delay others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Rotation(Generic[T]):
    """A queue whose keys take turns. The items of one key are first in, first out."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def push(self, key: str, item: T) -> None:
        """Append an item. A new key comes last."""
        self._queues.setdefault(key, deque()).append(item)

    def pop(self) -> T:
        """Remove and return the first item of the key whose turn it is."""
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        item = queue.popleft()
        if queue:
            self._queues[key] = queue  # the last key now
        return item


class FairTurns:
    """Turns to compute on the event loop: at most `limit` at a time, namespaces in rotation.

    Each turn is granted in a new iteration of the event loop. Otherwise a thousand tasks that are
    ready would run before any event of another namespace is read.
    """

    def __init__(self, limit: int):
        self._free = limit
        self._waiting: Rotation[asyncio.Future[None]] = Rotation()
        self._scheduled = False

    @asynccontextmanager
    async def take(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it in the context."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.push(namespace, turn)
        self._schedule()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
            self._schedule()

    def _schedule(self) -> None:
        if self._waiting and self._free > 0 and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        self._scheduled = False
        turn = self._waiting.pop()
        if not turn.done():
            self._free -= 1
            turn.set_result(None)
        self._schedule()
