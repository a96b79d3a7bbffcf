"""Score the ways to place a job.

Candidates whose cost is within the tolerance of the lowest one compare by their footprint, then by
cost, by the bytes over the most loaded uplink (even where NICs are the bottleneck, because other
jobs share the uplinks), and by the free nodes left in their domains. The others compare by cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.cost import TIE, Congestion, LinkIndex
from llmtrain_core.placement.footprint import Footprint, FootprintModel
from llmtrain_core.placement.traffic.flows import Traffic


@dataclass(frozen=True, slots=True)
class PlacementCandidate:
    """One way to place the job."""

    method: str
    leaves: tuple[int, ...]
    """Leaf domain of every block."""
    seconds: float
    """Cost, rounded to nine digits."""
    footprint: Footprint
    uplink_bytes: float
    """Exposed bytes over the most loaded uplink of every kind, added up."""
    stranded: tuple[int, ...]
    """Free nodes left in the domains of the job, from near to far."""

    @property
    def order(self) -> str:
        """Name of the order of ranks."""
        return self.method.partition(",")[0]

    def score(self, limit: float) -> tuple[object, ...]:
        """Return the criteria in order of precedence; lower is better.

        Costs of at most `limit` seconds count as equal.
        """
        over = self.seconds if self.seconds > limit else 0.0
        rest = (self.seconds, self.uplink_bytes, self.stranded, self.leaves)
        return (over, self.footprint, *rest)


def limit_of(candidates: Iterable[PlacementCandidate], tolerated: float) -> float:
    """Return the seconds up to which costs count as equal to the lowest one."""
    return _limit(min(candidate.seconds for candidate in candidates), tolerated)


def _limit(least: float, tolerated: float) -> float:
    return (least + tolerated) * (1 + TIE)


def ranked(candidates: Iterable[PlacementCandidate], tolerated: float) -> list[PlacementCandidate]:
    """Return candidates, best first."""
    candidates = list(candidates)
    limit = limit_of(candidates, tolerated)
    return sorted(candidates, key=lambda candidate: candidate.score(limit))


class Scorer:
    """Computes the scores of assignments of one request."""

    def __init__(
        self,
        traffic: Traffic,
        link_index: LinkIndex,
        capacity: CapacityTree,
        spares: int,
        tolerated: float,
    ):
        """`tolerated` are the seconds below which a gain does not justify more domains."""
        self.congestion = Congestion(traffic, link_index)
        self.capacity = capacity
        self.footprints = FootprintModel(link_index, capacity, spares)
        self.tolerated = tolerated
        self.least = sum(self.congestion.base) * (1 + TIE)
        """The cost that no candidate is below."""
        self.good = _limit(sum(self.congestion.base), tolerated)
        """A cost of at most this is equal to the lowest one, whatever that is."""

    def candidate(self, method: str, leaves: Sequence[int]) -> PlacementCandidate:
        """Score an assignment."""
        self.congestion.assign_all(leaves)
        footprint, stranded = self.footprints.of(Counter(leaves))
        return PlacementCandidate(
            method,
            tuple(leaves),
            float(f"{self.congestion.seconds():.9g}"),
            footprint,
            float(f"{self.congestion.uplink_bytes():.9g}"),
            stranded,
        )
