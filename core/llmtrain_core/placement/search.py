"""Search for the assignment of blocks to leaf domains with the lowest cost on the fewest domains.

1. The fewest domains that hold the job. Where no other placement can gain more than the tolerance,
   these are used.
2. Otherwise all greedy packings are candidates, so the result is never worse than any of them.
   Local search improves the best few.
3. The candidate with the lowest cost may use many domains. Sets with fewer of them are searched for
   an assignment whose cost is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from llmtrain_core.placement.candidate import PlacementCandidate, Scorer, limit_of, ranked
from llmtrain_core.placement.capacity import NOT_A_LEAF, CapacityTree, DomainCapacity
from llmtrain_core.placement.cost import LinkIndex
from llmtrain_core.placement.domain_sets import DomainChoice, DomainSet
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
SETS, SETS_OF_SMALL = 2, 12
"""Sets of the fewest domains that are packed before anything else."""
SET_STYLES = (STYLES[0], STYLES[2])
"""Ways to fill a set of domains: one after the other, and in equal parts."""
SET_WORK, PACKING_WORK = 0.4, 0.75
"""Shares of the work that pack the sets of the fewest domains, and that pack everything else."""
BETWEEN_WORK = 0.1
"""Share of the work that packs one set of more domains than the fewest."""
CONSOLIDATION = 6_000
"""Moves that look for fewer domains within the tolerance, for jobs of up to `MEDIUM` nodes."""


@dataclass(slots=True)
class _Search:
    """The search for one request."""

    request: Request
    scorer: Scorer
    capacity: CapacityTree
    choice: DomainChoice
    work: float = WORK
    found: dict[tuple[int, ...], PlacementCandidate] = field(default_factory=dict)
    known_orders: dict[int, list[RankOrder]] = field(default_factory=dict)

    @property
    def medium(self) -> bool:
        """Whether the job is small enough to try all pairs of blocks."""
        return self.request.nodes <= MEDIUM

    def ranked(self) -> list[PlacementCandidate]:
        """Return all candidates, best first."""
        return ranked(self.found.values(), self.scorer.tolerated)

    def is_ideal(self) -> bool:
        """Whether some candidate costs no more than the ideal."""
        return min((c.seconds for c in self.found.values()), default=inf) <= self.scorer.least

    def orders(self, leaf_size: int) -> list[RankOrder]:
        """Return the orders of ranks to try where a leaf domain holds `leaf_size` blocks."""
        if leaf_size not in self.known_orders:
            request = self.request
            found = orders(request.layout, request.gpus_per_node, leaf_size)
            self.known_orders[leaf_size] = found
        return self.known_orders[leaf_size]

    def pack(
        self,
        capacity: CapacityTree,
        where: Sequence[DomainCapacity],
        style: FillStyle,
        keeps: Sequence[KeepTogether],
    ) -> list[PlacementCandidate]:
        """Score the packings of one style within the budget, and return them."""
        congestion = self.scorer.congestion
        price = len(congestion.link_index.domains) * BY_LINK + self.request.nodes
        price *= BY_NVLINK if congestion.wide else 1
        packed = []
        tried = self.orders(capacity.largest)
        for method, leaves in _fillings(tried, capacity, where, style, keeps):
            if self.work <= 0 and self.found:
                break
            self.work -= len(leaves)
            if leaves not in self.found:
                self.work -= price
                self.found[leaves] = self.scorer.candidate(method, leaves)
            packed.append(self.found[leaves])
        return packed

    def pack_set(
        self, chosen: DomainSet, styles: Sequence[FillStyle] = SET_STYLES
    ) -> list[PlacementCandidate]:
        """Score packings of a set of leaf domains, and return those of its footprint."""
        restricted = self.capacity.restricted(chosen.limits)
        if restricted.root.fits < self.request.nodes:  # tensor groups span leaf domains
            return []
        keeps = (*WIDELY, KeepTogether.NEAR) if self.medium else WIDELY
        packed: list[PlacementCandidate] = []
        for style in styles:
            packed += self.pack(restricted, [_narrowest(restricted.root)], style, keeps)
        return [c for c in packed if c.footprint <= chosen.footprint]

    def improve(
        self,
        capacity: CapacityTree,
        candidates: Sequence[PlacementCandidate],
        moves: int,
        enough: float,
    ) -> None:
        """Improve the best candidates until one costs no more than `enough` seconds."""
        for candidate in _improve(self.scorer, capacity, candidates, moves, enough):
            known = self.found.get(candidate.leaves)
            if known is None or known.score(0.0) > candidate.score(0.0):
                self.found[candidate.leaves] = candidate


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
    scorer = Scorer(traffic, link_index, capacity, request.spares, request.tolerated_seconds)
    choice = DomainChoice(capacity, scorer.footprints, request.nodes, request.spares, max_depth)
    state = _Search(request, scorer, capacity, choice)
    sets = choice.fewest()
    if _use_fewest(state, sets):
        return state.ranked()
    _minimize_cost(
        state, candidate_domains(capacity, request.nodes, request.spares, max_depth), max_depth
    )
    _consolidate(state, sets)
    return state.ranked()


def _use_fewest(state: _Search, sets: Sequence[DomainSet]) -> bool:
    """Pack the fewest domains, and return whether nothing else can gain more than tolerated."""
    scorer = state.scorer
    state.work *= SET_WORK
    equal = [chosen for chosen in sets if chosen.footprint == sets[0].footprint]
    most = SETS if state.request.nodes > SMALL else SETS_OF_SMALL
    good: list[tuple[DomainSet, PlacementCandidate]] = []
    for style in SET_STYLES:
        for chosen in [equal[0], *equal[:0:-1]][:most]:  # the tightest, then the widest ones
            packed = state.pack_set(chosen, [style])
            good += [(chosen, c) for c in packed if c.seconds <= scorer.good]
        if state.is_ideal():
            break
    if good:
        if not state.is_ideal():
            _improve_set(state, good)
        return True
    state.work = WORK * PACKING_WORK
    return False


def _improve_set(state: _Search, good: Sequence[tuple[DomainSet, PlacementCandidate]]) -> None:
    """Improve the order of ranks on the best set."""
    scorer = state.scorer
    best = min(good, key=lambda item: item[1].score(0.0))[0]
    candidates = ranked([c for chosen, c in good if chosen is best], 0.0)
    moves = budget(state.request.nodes, scorer.congestion.wide) // 4
    state.improve(state.capacity.restricted(best.limits), candidates, moves, scorer.least)


def _minimize_cost(state: _Search, where: Sequence[DomainCapacity], max_depth: int) -> None:
    """Add all packings of the candidate domains, and improve the best ones."""
    scorer, capacity = state.scorer, state.capacity
    passes: list[tuple[FillStyle, tuple[KeepTogether, ...]]] = [(style, WIDELY) for style in STYLES]
    if state.medium:
        passes += [(style, (KeepTogether.NEAR,)) for style in STYLES]
    for style, keeps in passes:
        state.pack(capacity, where, style, keeps)
        if state.is_ideal():
            return
    moves = budget(state.request.nodes, scorer.congestion.wide)
    candidates = ranked(state.found.values(), 0.0)
    if max_depth and candidates:  # the changes must not leave the domain that bounds the job
        inside = capacity.leaves[candidates[0].leaves[0]].path[:max_depth]
        leaves = [leaf for leaf in capacity.leaves if leaf.path[:max_depth] == inside]
        capacity = capacity.restricted({leaf.leaf: leaf.fits for leaf in leaves})
        numbers = {leaf.leaf for leaf in leaves}
        candidates = [c for c in candidates if numbers.issuperset(c.leaves)]
    state.improve(capacity, candidates, moves, scorer.least)


def _consolidate(state: _Search, sets: Sequence[DomainSet]) -> None:
    """Look for an assignment on fewer domains whose cost is within the tolerance.

    On as many domains, look for one that leaves fewer nodes there and costs no more.
    """
    if not state.medium and not state.scorer.tolerated:
        return
    small = state.request.nodes <= SMALL and len(state.capacity.leaves) <= SMALL
    divisions = state.choice.divisions() if small else None
    moves = CONSOLIDATION if state.medium else 0
    for chosen in divisions or _sets_between(state, sets):
        candidates = list(state.found.values())
        limit = limit_of(candidates, state.scorer.tolerated)
        best = min(candidates, key=lambda candidate: candidate.score(limit))
        if chosen.footprint > best.footprint or moves < 0:
            return
        if chosen.footprint == best.footprint:
            if chosen.stranded >= best.stranded:
                continue
            limit = best.seconds
        packed = state.pack_set(chosen)
        if moves and packed and min(c.seconds for c in packed) > limit:
            part = max(300, moves // 8)
            moves -= part
            restricted = state.capacity.restricted(chosen.limits)
            state.improve(restricted, ranked(packed, 0.0)[:2], part, limit)


def _sets_between(state: _Search, sets: Sequence[DomainSet]) -> Iterator[DomainSet]:
    """Yield the sets of the fewest leaf domains, then one each of more and more leaf domains."""
    if state.medium:
        yield from sets[:SETS]
    if not state.scorer.tolerated:
        return
    most = max(len(set(candidate.leaves)) for candidate in state.found.values())
    fewest = len(sets[0].limits)
    for leaves in sorted({fewest + 1, fewest + 2, fewest * 3 // 2, fewest * 2, fewest * 4}):
        if fewest < leaves < most:
            state.work = max(state.work, WORK * BETWEEN_WORK)
            unit = state.capacity.group
            yield from (s.even(state.request.nodes, unit) for s in state.choice.fewest(leaves)[:1])


def _narrowest(domain: DomainCapacity) -> DomainCapacity:
    """Return the nearest domain that contains all leaf domains of a tree."""
    while len(domain.children) == 1:
        domain = domain.children[0]
    return domain


def _fillings(
    tried: Sequence[RankOrder],
    capacity: CapacityTree,
    where: Sequence[DomainCapacity],
    style: FillStyle,
    keeps: Sequence[KeepTogether],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (method, leaves). Ranks in order come first, as schedulers place that count pods."""
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
    scorer: Scorer,
    capacity: CapacityTree,
    best: Sequence[PlacementCandidate],
    moves: int,
    enough: float,
) -> list[PlacementCandidate]:
    """Improve the first candidates until one costs no more than `enough`.

    All descend to a local optimum before any is perturbed, so that the best ones are perturbed.
    Returns nothing if tensor groups may span several leaf domains.
    """
    if capacity.group > 1 and capacity.depth < len(capacity.leaves[0].path):
        return []
    blocks = scorer.congestion.traffic.blocks
    heads = {candidate.order: candidate for candidate in reversed(best)}
    first = ranked(heads.values(), 0.0)
    rest = [candidate for candidate in best if candidate not in first]
    descent = LocalSearch(scorer.congestion, capacity, budget=moves)
    most = IMPROVED if blocks <= MEDIUM else IMPROVED_OF_LARGE
    found: list[PlacementCandidate] = []
    for candidate in [*first, *rest][:most]:
        part = descent.budget // (SHARE if blocks <= MEDIUM else 1)
        leaves = descent.search(candidate.leaves, part, perturb=False)
        found.append(scorer.candidate(f"{candidate.method}, improved", leaves))
        if found[-1].seconds <= enough:
            return found
    if blocks <= MEDIUM:
        distinct = {candidate.leaves: candidate for candidate in reversed(found)}
        perturbed = ranked(distinct.values(), 0.0)[:PERTURBED]
        for left, candidate in zip(range(len(perturbed), 0, -1), perturbed, strict=True):
            leaves = descent.search(candidate.leaves, descent.budget // left, perturb=True)
            found.append(scorer.candidate(candidate.method, leaves))
            if found[-1].seconds <= enough:
                break
    return found


def budget(blocks: int, wide: bool) -> int:
    """Return the number of moves to try: many for small jobs, where all pairs are tried.

    Where NVLink spans nodes (`wide`), most of the busiest links are nodes, which takes more moves.
    """
    if blocks > MEDIUM:
        return 1_200
    return 48_000 if wide and blocks <= SMALL else 36_000
