"""Quantiles of the last calls of every collective.

Quantiles of a histogram are as coarse as its buckets, and cover all calls since the start. These
are exact, and need two series per group and operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

RECENT_CALLS = 256
QUANTILES = (0.5, 0.99)


class RecentCalls(Collector):
    """The durations of the last calls by group and operation; a scrape computes the quantiles."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls: dict[tuple[str, str], deque[float]] = {}
        registry.register(self)

    def add(self, group: str, op: str, seconds: Iterable[float]) -> None:
        """Add calls, which replace the oldest ones."""
        self._calls.setdefault((group, op), deque(maxlen=RECENT_CALLS)).extend(seconds)

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the family without series: the registry reads its name."""
        return [_family()]

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the family; nothing before the first call."""
        if not self._calls:
            return []
        family = _family()
        for (group, op), calls in self._calls.items():
            ordered = sorted(calls)
            for fraction in QUANTILES:
                family.add_metric((group, op, str(fraction)), _quantile(ordered, fraction))
        return [family]


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "llmtrain_collective_recent_seconds",
        f"Quantiles of the last {RECENT_CALLS} calls in sampled steps, without scalars.",
        labels=("group", "op", "quantile"),
    )


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Return a quantile of sorted values, interpolated linearly between two of them."""
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
