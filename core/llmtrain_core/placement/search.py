"""Search for the assignment of blocks to leaf domains with the lowest cost.

All greedy packings are candidates, so the result is never worse than any of them. Local search
improves the best few. Candidates are compared by cost, then by the bytes over the most loaded
uplink (even where NICs are the bottleneck, because other jobs share the uplinks), then by domains
used from far to near, then by unused GPUs and nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmtrain_core.placement.capacity import NOT_A_LEAF, CapacityTree, DomainCapacity
from llmtrain_core.placement.cost import TIE, Congestion, LinkIndex
from llmtrain_core.placement.local_search import MEDIUM, SMALL, LocalSearch
from llmtrain_core.placement.packing import STYLES, FillStyle, KeepTogether, candidate_domains, fill
from llmtrain_core.placement.rank_orders import RankOrder, orders
from llmtrain_core.placement.traffic.flows import Traffic
from llmtrain_core.placement.types import Request

WORK = 80_000
"""Budget in blocks assigned, blocks scored and links scored. Limits the time of large jobs."""
BY_LINK = 2
"""Scoring one domain takes as long as scoring this many blocks."""
BY_NVLINK = 6
"""Factor by which scoring takes longer where NVLink spans nodes: each node is a link."""
WIDELY = (KeepTogether.ALL, KeepTogether.NONE)
"""Packings of all jobs. Jobs of up to `MEDIUM` nodes also use `KeepTogether.NEAR`."""
IMPROVED, IMPROVED_OF_LARGE = 16, 3
"""Candidates that are improved. The best one of every order of ranks comes first."""
PERTURBED = 3
"""Improved candidates that are perturbed, each with an equal part of the remaining budget."""
SHARE = 14
"""A candidate gets 1 / SHARE of the remaining budget before any is perturbed, so that at least 30 %
remain for perturbations."""


class Score(NamedTuple):
    """The criteria in order of precedence; lower is better."""

    seconds: float
    uplink_bytes: float
    spares_outside: tuple[int, ...]
    """Spares that do not fit into the domains of the job, from near to far."""
    domains: tuple[int, ...]
    """Domains used, from far to near."""
    gpus_over: int
    """Unused GPUs on the nodes."""
    stranded: tuple[int, ...]
    """Free nodes left in the domains of the job, from near to far."""
    leaves: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlacementCandidate:
    """One way to place the job."""

    method: str
    leaves: tuple[int, ...]
    """Leaf domain of every block."""
    score: Score
    """Lower is better."""

    @property
    def order(self) -> str:
        """Name of the order of ranks."""
        return self.method.partition(",")[0]

    @property
    def seconds(self) -> float:
        """Cost, rounded to nine digits."""
        return self.score.seconds


class Scorer:
    """Computes the scores of assignments of one request."""

    def __init__(
        self, traffic: Traffic, link_index: LinkIndex, capacity: CapacityTree, spares: int
    ):
        self.congestion = Congestion(traffic, link_index)
        self.capacity = capacity
        self.spares = spares
        free = {domain.path: domain.free for domain in capacity.root.walk()}
        self._domains = [(len(path) - 1, free[path]) for path in link_index.domains]
        """Depth and free nodes of every domain."""

    def candidate(self, method: str, leaves: Sequence[int]) -> PlacementCandidate:
        """Score an assignment."""
        self.congestion.assign_all(leaves)
        seconds = float(f"{self.congestion.seconds():.9g}")
        counts = Counter(leaves)
        used, stranded = ([0] * len(self.capacity.leaves[0].path) for _ in range(2))
        for blocks, (depth, free) in zip(self.congestion.domain_blocks, self._domains, strict=True):
            if blocks:
                used[depth] += 1
                stranded[depth] += free - blocks.bit_count()
        over = sum(
            free_node.left
            for leaf, count in counts.items()
            for free_node in self.capacity.free_nodes[leaf][:count]
        )
        near = tuple(max(0, self.spares - left) for left in reversed(stranded))
        stranded = [max(0, left - self.spares) for left in stranded]
        score = Score(
            seconds,
            float(f"{self.congestion.uplink_bytes():.9g}"),
            near,
            tuple(used),
            over,
            tuple(reversed(stranded)),
            tuple(leaves),
        )
        return PlacementCandidate(method, tuple(leaves), score)


def search(
    request: Request,
    traffic: Traffic,
    link_index: LinkIndex,
    capacity: CapacityTree,
    max_depth: int,
) -> list[PlacementCandidate]:
    """Return the candidates, best first. The job must fit.

    `max_depth` is the length of the path of the widest domain that the job may use.
    """
    where = candidate_domains(capacity, request.nodes, request.spares, max_depth)
    scorer = Scorer(traffic, link_index, capacity, request.spares)
    found: dict[tuple[int, ...], PlacementCandidate] = {}
    least = sum(scorer.congestion.base) * (1 + TIE)
    work, price = WORK, len(link_index.domains) * BY_LINK + request.nodes
    price *= BY_NVLINK if scorer.congestion.wide else 1
    passes: list[tuple[FillStyle, tuple[KeepTogether, ...]]] = [(style, WIDELY) for style in STYLES]
    if request.nodes <= MEDIUM:
        passes += [(style, (KeepTogether.NEAR,)) for style in STYLES]
    for style, keeps in passes:
        for method, leaves in _fillings(request, capacity, where, style, keeps):
            if work <= 0:
                break
            work -= len(leaves)
            if leaves not in found:
                work -= price
                found[leaves] = scorer.candidate(method, leaves)
        ranked = sorted(found.values(), key=lambda c: c.score)
        if ranked[0].seconds <= least:
            return ranked
    return sorted([*ranked, *_improve(scorer, ranked, least)], key=lambda c: c.score)


def _fillings(
    request: Request,
    capacity: CapacityTree,
    where: Sequence[DomainCapacity],
    style: FillStyle,
    keeps: Sequence[KeepTogether],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (method, leaves). Ranks in order come first, as schedulers place that count pods."""
    tried = orders(request.layout, request.gpus_per_node, capacity.largest)
    for start in where if KeepTogether.NONE in keeps else ():
        yield (
            _method(tried[0], style.name),
            tuple(fill(capacity, start, tried[0], style, KeepTogether.NONE)),
        )
    for start in where:
        if start.leaf == NOT_A_LEAF:
            for order in tried:
                for keep in keeps:
                    leaves = fill(capacity, start, order, style, keep)
                    yield _method(order, style.name), tuple(leaves)


def _method(order: RankOrder, style: str) -> str:
    return f"{order.name}, {style}"


def _improve(
    scorer: Scorer, ranked: Sequence[PlacementCandidate], least: float
) -> list[PlacementCandidate]:
    """Improve the best candidates until one costs no more than `least`.

    All descend to a local optimum before any is perturbed, so that the best ones are perturbed.
    Returns nothing if tensor groups may span several leaf domains.
    """
    capacity = scorer.capacity
    if capacity.group > 1 and capacity.depth < len(capacity.leaves[0].path):
        return []
    blocks = scorer.congestion.traffic.blocks
    heads = {candidate.order: candidate for candidate in reversed(ranked)}
    first = sorted(heads.values(), key=lambda c: c.score)
    rest = [candidate for candidate in ranked if candidate not in first]
    descent = LocalSearch(
        scorer.congestion, capacity, budget=budget(blocks, scorer.congestion.wide)
    )
    most = IMPROVED if blocks <= MEDIUM else IMPROVED_OF_LARGE
    found = []
    for candidate in [*first, *rest][:most]:
        part = descent.budget // (SHARE if blocks <= MEDIUM else 1)
        leaves = descent.search(candidate.leaves, part, perturb=False)
        found.append(scorer.candidate(f"{candidate.method}, improved", leaves))
        if found[-1].seconds <= least:
            return found
    if blocks <= MEDIUM:
        distinct = {candidate.leaves: candidate for candidate in reversed(found)}
        perturbed = sorted(distinct.values(), key=lambda c: c.score)[:PERTURBED]
        for left, candidate in zip(range(len(perturbed), 0, -1), perturbed, strict=True):
            leaves = descent.search(candidate.leaves, descent.budget // left, perturb=True)
            found.append(scorer.candidate(candidate.method, leaves))
            if found[-1].seconds <= least:
                break
    return found


def budget(blocks: int, wide: bool) -> int:
    """Return the number of moves to try: many for small jobs, where all pairs are tried.

    Where NVLink spans nodes (`wide`), most of the busiest links are nodes, which takes more moves.
    """
    if blocks > MEDIUM:
        return 1_200
    return 48_000 if wide and blocks <= SMALL else 36_000
