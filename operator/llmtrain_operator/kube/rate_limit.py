"""A limit on writes to the API server, shared by all jobs."""

from __future__ import annotations

import asyncio
import time

from llmtrain_operator.kube.fair_turns import Rotation


class WriteRateLimiter:
    """A token bucket of `rate` writes per second with a burst of twice as many.

    Namespaces take turns, so the writes of one tenant do not delay those of others.
    """

    def __init__(self, rate: float):
        self._rate = rate
        self._burst = 2 * rate
        self._tokens = self._burst
        self._at = time.monotonic()
        self._waiting: Rotation[asyncio.Future[None]] = Rotation()

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
