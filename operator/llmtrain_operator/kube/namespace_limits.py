"""Limits that keep the jobs of one namespace from delaying those of others.

- `FairTurns` shares the event loop: namespaces compute in rotation.
- `StartTurns` bounds the jobs that start at the same time: namespaces start jobs in rotation.
- `NamespaceGate` bounds what is under way at the same time for one namespace.
- `WriteLimiter` bounds the writes to the API server by both a rate and a gate.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

JOB_WRITES = 4
"""Writes of jobs that are under way at the same time for one namespace.

A job of a megabyte is slow to write. If hundreds of them were written at once, the API server would
answer no other request, and the writes themselves would time out and be repeated.
"""
STARTING_JOBS = 8
"""Jobs between their placement and the creation of their last pod."""
START_TURN_SECONDS = 2.0
"""A job whose objects are refused or slow keeps others from starting for this long at most."""


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


class StartTurns:
    """At most `limit` jobs between their placement and their last pod, namespaces in rotation.

    Otherwise all jobs of a burst advance together, and the first pod exists when nearly all do. A
    turn ends after `seconds`; the job may ask for another one.
    """

    def __init__(
        self,
        limit: int,
        wake: Callable[[str], None],
        seconds: float = START_TURN_SECONDS,
    ):
        """`wake` is called with the UID of a job that waited and gets its turn."""
        self._limit = limit
        self._wake = wake
        self._seconds = seconds
        self._held: dict[str, asyncio.TimerHandle] = {}
        self._waiting: Rotation[str] = Rotation()
        self._asked: set[str] = set()

    def take(self, uid: str, namespace: str) -> bool:
        """Return whether the job has a turn. If it has none, it is woken when it gets one."""
        if uid not in self._held and uid not in self._asked:
            if len(self._held) < self._limit:
                self._hold(uid)
            else:
                self._asked.add(uid)
                self._waiting.push(namespace, uid)
        return uid in self._held

    def end(self, uid: str) -> None:
        """End the turn of a job, or withdraw its request."""
        self._asked.discard(uid)
        timer = self._held.pop(uid, None)
        if timer is None:
            return
        timer.cancel()
        while self._waiting and len(self._held) < self._limit:
            following = self._waiting.pop()
            if following in self._asked:  # else it has withdrawn its request
                self._asked.remove(following)
                self._hold(following)
                self._wake(following)

    def _hold(self, uid: str) -> None:
        loop = asyncio.get_running_loop()
        self._held[uid] = loop.call_later(self._seconds, self.end, uid)


class NamespaceGate:
    """At most `limit` operations at a time for each namespace."""

    def __init__(self, limit: int):
        self._limit = limit
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._gates)

    @asynccontextmanager
    async def enter(self, namespace: str) -> AsyncIterator[None]:
        """Wait until an operation may begin; it ends with the context."""
        self._users[namespace] += 1
        try:
            async with self._gates.setdefault(namespace, asyncio.Semaphore(self._limit)):
                yield
        finally:
            self._users[namespace] -= 1
            if not self._users[namespace]:
                del self._users[namespace], self._gates[namespace]


class WriteLimiter:
    """A token bucket of `rate` writes per second with a burst of twice as many, at least one.

    Namespaces take turns, so the writes of one tenant do not delay those of others.
    """

    def __init__(self, rate: float):
        self._rate = rate
        self._burst = max(1.0, 2 * rate)  # below 1 there would never be a whole token
        self._tokens = self._burst
        self._at = time.monotonic()
        self._waiting: Rotation[asyncio.Future[None]] = Rotation()
        self._job_gate = NamespaceGate(JOB_WRITES)

    @asynccontextmanager
    async def job_write(self, namespace: str) -> AsyncIterator[None]:
        """Wait until a job of a namespace may be written; the write ends with the context."""
        await self.acquire(namespace)
        async with self._job_gate.enter(namespace):
            yield

    async def acquire(self, namespace: str) -> None:
        """Wait until the next write of a namespace is allowed."""
        self._refill()
        if self._tokens >= 1 and not self._waiting:
            self._tokens -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._call_at_next_token()
        self._waiting.push(namespace, turn)
        await turn

    def _refill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now

    def _call_at_next_token(self) -> None:
        delay = max(0.0, (1 - self._tokens) / self._rate)
        asyncio.get_running_loop().call_later(delay, self._grant)

    def _grant(self) -> None:
        self._refill()
        while self._waiting and self._tokens >= 1:
            turn = self._waiting.pop()
            if not turn.done():  # else its task was cancelled
                self._tokens -= 1
                turn.set_result(None)
        if self._waiting:
            self._call_at_next_token()
