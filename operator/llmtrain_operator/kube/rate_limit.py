"""A bound on the writes to the API server, shared by all jobs."""

from __future__ import annotations

import asyncio
import time


class WriteRateLimiter:
    """A token bucket: `rate` writes a second, and twice as many at once."""

    def __init__(self, rate: float):
        self._rate = rate
        self._burst = 2 * rate
        self._tokens = self._burst
        self._at = time.monotonic()

    async def acquire(self) -> None:
        """Wait until one more write is allowed."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        if self._tokens < 0:
            # Who comes later finds a larger debt and so waits longer: first come, first served.
            await asyncio.sleep(-self._tokens / self._rate)
