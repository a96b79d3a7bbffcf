"""CPU time as a quiet core needs it.

A core whose neighbours on the host are busy does half or a third as much in a CPU second, for
minutes. That is no regression of ours, so times are scaled by what the trainer's reference workload
takes just then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from llmtrain_trainer.calibration.bench_group import REFERENCE_SECONDS, reference_workload

SLOWEST = 3.0
"""What is slower than that is slow for another reason."""


def slowness() -> float:
    """Return how many times slower than a quiet core this one is now: from 1 to `SLOWEST`."""
    took = median(reference_workload() for _ in range(3))
    return min(max(1.0, took / REFERENCE_SECONDS), SLOWEST)


class Laps:
    """CPU seconds of this process, all its threads, one stretch after the other."""

    def __init__(self) -> None:
        self._slow = slowness()
        self._start = time.process_time()

    def lap(self) -> float:
        """Return what the stretch since the last call would have taken of a quiet core."""
        taken = time.process_time() - self._start
        before, self._slow = self._slow, slowness()
        self._start = time.process_time()
        return taken / ((before + self._slow) / 2)


def quiet_median(work: Callable[[], object], runs: int = 3) -> float:
    """Return the CPU seconds of one run: the median of some."""
    found = []
    for _ in range(runs):
        laps = Laps()
        work()
        found.append(laps.lap())
    return median(found)
