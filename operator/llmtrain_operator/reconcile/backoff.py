"""The back-off of retries of a reconcile loop."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
RESYNC_SECONDS = 600.0
"""Longest time between two iterations of a loop."""


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with jitter: the delay doubles with each consecutive failure."""

    length: float = 0.0
    until: float = 0.0

    def extend(self, at_least: float = 0.0) -> None:
        """Start a delay that is twice as long as the last one."""
        self.length = min(MAX_BACKOFF_SECONDS, max(MIN_BACKOFF_SECONDS, self.length * 2, at_least))
        self.until = time.monotonic() + self.length * random.uniform(0.8, 1.2)

    def reset(self) -> None:
        """End the delay. The next one is the shortest again."""
        self.length = self.until = 0.0

    @property
    def left(self) -> float:
        """Seconds until the end of the delay; 0 if there is none."""
        return max(0.0, self.until - time.monotonic())
