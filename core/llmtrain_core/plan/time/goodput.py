"""Goodput under failures: time between failures, checkpoint interval and share of useful time.

Failures are independent and come at a constant rate per node. MTTF = 1 / (N r). The optimal
checkpoint interval is sqrt(2 w MTTF) (Young, 1974; Daly, 2006, first order), and the expected share
of useful time is (1 - N r (u + dt / 2)) / (1 + w / dt) (Kokolis et al., arXiv:2410.21680), with w
the seconds that a save stops training and u those that a restart takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from llmtrain_core.errors import PlanError

DAY = 86400.0

NODE_FAILURES_PER_DAY = 3.79e-3
"""Failures per node and day: 419 unexpected interruptions of 2,048 nodes in 54 days while Llama 3
405B was trained (arXiv:2407.21783). Meta's clusters RSC-1 and RSC-2 had 6.50e-3 and 2.34e-3
(arXiv:2410.21680)."""
RESTART_SECONDS = 300.0
"""Time to detect, place, start and load; the goal of this project for 10,000 GPUs."""
SAVE_SECONDS = 30.0
"""Duration of a synchronous save of a sharded checkpoint to a parallel file system."""
LEAST_SAVE = 1e-3
"""Lower bound: with 0 the optimal checkpoint interval would be 0."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Failure rate, and the cost of saves and restarts. Raises PlanError for invalid values."""

    per_node_day: float = NODE_FAILURES_PER_DAY
    """Failures per node and day that end all ranks."""
    save_seconds: float = SAVE_SECONDS
    """Seconds that a save blocks training."""
    restart_seconds: float = RESTART_SECONDS
    """Seconds from a failure until training resumes."""

    def __post_init__(self) -> None:
        for option, value, least in (
            ("failures-per-node-day", self.per_node_day, 0.0),
            ("save-seconds", self.save_seconds, LEAST_SAVE),
            ("restart-seconds", self.restart_seconds, 0.0),
        ):
            if not least <= value < inf:
                raise PlanError(f"--{option} {value:g} is not valid", f"use {least:g} or more")


DEFAULT_FAILURES = Failures()


@dataclass(frozen=True, slots=True)
class Goodput:
    """Goodput of a run under failures."""

    failures_per_day: float
    mean_seconds_between_failures: float
    checkpoint_seconds: float
    """Optimal time between two checkpoints in seconds."""
    ratio: float
    """Share of wall-clock time with training progress."""
    restart_within: float
    """Maximum restart time in seconds with which a run progresses; if <= 0, it never does."""


def goodput(
    nodes: int, failures: Failures = DEFAULT_FAILURES, interval_seconds: float | None = None
) -> Goodput:
    """Return the goodput of a run on `nodes` nodes, at the best interval or at a given one."""
    rate = nodes * failures.per_node_day / DAY
    if rate == 0:
        return Goodput(0.0, inf, inf, 1.0, inf)
    interval = interval_seconds or young_daly(failures.save_seconds, 1 / rate)
    lost = rate * (failures.restart_seconds + interval / 2)
    ratio = max(0.0, 1 - lost) / (1 + failures.save_seconds / interval)
    return Goodput(rate * DAY, 1 / rate, interval, ratio, 1 / rate - interval / 2)


def young_daly(save_seconds: float, mean_seconds_between_failures: float) -> float:
    """Return the optimal time between checkpoints in seconds."""
    return sqrt(2 * save_seconds * mean_seconds_between_failures)
