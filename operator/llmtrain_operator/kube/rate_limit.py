"""A limit on writes to the API server, shared by all jobs."""

from __future__ import annotations

import asyncio
import time


class WriteRateLimiter:
    """A token bucket of `rate` writes per second with a burst of twice as many."""

    def __init__(self, rate: float):
        self._rate = rate
        self._burst = 2 * rate
        self._tokens = self._burst
        self._at = time.monotonic()

    async def acquire(self) -> None:
        """Wait until the next write is allowed."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        if self._tokens < 0:
            # Later callers find a larger deficit and wait longer: first in, first out.
            await asyncio.sleep(-self._tokens / self._rate)
