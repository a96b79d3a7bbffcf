"""The best placement by every criterion, found by trial of all assignments.

Written from the words of `docs/placement.md` alone: costs within the tolerance of the lowest one
are equal; among them the fewest domains and the fewest spares outside them, level by level from far
to near; then the fewest domains taken that were free as a whole; then the fewest unused GPUs on the
nodes; then the lowest cost, the fewest bytes over the most loaded uplinks, and the fewest free
nodes left in the domains used, from near to far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Node, Snapshot
from tests.support.placement.cases import GPU
from tests.support.placement.free_nodes import Path, by_domain, depth_of, free_paths
from tests.support.placement.problem import problem_of

EVEN = 1 + 1e-8
"""Costs are compared after they are rounded to nine digits."""

Rank = tuple[Any, ...]
"""Criteria in order of precedence; lower is better."""


@dataclass(frozen=True)
class Judge:
    """All criteria of one request on one cluster."""

    request: Request
    snapshot: Snapshot

    @cached_property
    def problem(self) -> Any:
        return problem_of(self.request, self.snapshot)

    @cached_property
    def free(self) -> list[Path]:
        return free_paths(self.request, self.snapshot)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.snapshot.nodes}

    @cached_property
    def depths(self) -> range:
        return range(1, len(self.snapshot.levels))

    @cached_property
    def whole(self) -> dict[Path, bool]:
        """Whether no node in a domain is in use, by domain."""
        found: dict[Path, bool] = {}
        for node in self.snapshot.nodes:
            idle = node.ready and self.snapshot.free(node, GPU) == node.allocatable[GPU]
            for depth in self.depths:
                domain = self.snapshot.path(node)[:depth]
                found[domain] = found.get(domain, True) and idle
        return found

    def footprint(self, paths: Sequence[Path]) -> Rank:
        """Return domains and spares outside, whole domains taken, and unused GPUs."""
        used = [{path[:depth] for path in paths} for depth in self.depths]
        outside = [max(0, self.request.spares - left) for left in self._left(paths)]
        return (
            tuple(zip(map(len, used), outside, strict=True)),
            tuple(sum(self.whole[domain] for domain in domains) for domains in used),
            sum(map(self._unused, paths)),
        )

    def rest(self, paths: Sequence[Path]) -> Rank:
        """Return seconds, bytes over the most loaded uplinks, and free nodes left."""
        stranded = [max(0, left - self.request.spares) for left in self._left(paths)]
        seconds = float(f"{self.problem.seconds(paths):.9g}")
        return seconds, self._uplink_bytes(paths), tuple(reversed(stranded))

    def best(self) -> tuple[Rank, Rank]:
        """Return the footprint, and the other criteria, of the best placement."""
        found: dict[Rank, Rank] = {}
        for paths in self._assignments():
            footprint, rest = self.footprint(paths), self.rest(paths)
            found[footprint] = min(rest, found.get(footprint, rest))
        least = min(rest[0] for rest in found.values())
        limit = (least + self.request.tolerated_seconds) * EVEN
        return min(item for item in found.items() if item[1][0] <= limit)

    def _left(self, paths: Sequence[Path]) -> list[int]:
        """Return the free nodes left in the domains used, by level from far to near."""
        counts = [Counter(path[:depth] for path in self.free) for depth in self.depths]
        return [
            sum(inside[domain] for domain in {path[:depth] for path in paths}) - len(paths)
            for depth, inside in zip(self.depths, counts, strict=True)
        ]

    def _unused(self, path: Path) -> int:
        node = self.nodes[path[-1]]
        return self.snapshot.free(node, GPU) - self.request.gpus_per_node

    def _uplink_bytes(self, paths: Sequence[Path]) -> float:
        """Return the bytes over the most loaded uplink of each kind, times its exposed share."""
        total = 0.0
        for kind, flows in self.problem.flows.items():
            links: Counter[tuple[str, Path]] = Counter()
            for (source, target), amount in flows.items():
                for depth in self.depths:
                    left, entered = paths[source][:depth], paths[target][:depth]
                    if left != entered:
                        links["out", left] += amount
                        links["in", entered] += amount
            total += self.problem.exposed[kind] * max(links.values(), default=0)
        return float(f"{total:.9g}")

    def _assignments(self) -> Iterator[list[Path]]:
        """Yield the nodes of every block: of a leaf domain, those with the fewest unused GPUs."""
        depth = depth_of(self.snapshot, self.request.require) if self.request.require else 0
        for inside in by_domain(self.free, depth).values():
            if len(inside) >= self.request.nodes + self.request.spares:
                leaves = {
                    leaf: sorted(paths, key=lambda path: (self._unused(path), path))
                    for leaf, paths in by_domain(inside, len(self.depths)).items()
                }
                yield from self._assign([], leaves, Counter())

    def _assign(
        self, chosen: list[Path], leaves: dict[Path, list[Path]], taken: Counter[Path]
    ) -> Iterator[list[Path]]:
        if len(chosen) == self.request.nodes:
            yield chosen
            return
        for leaf, paths in leaves.items():
            if taken[leaf] < len(paths):
                node = paths[taken[leaf]]
                taken[leaf] += 1
                yield from self._assign([*chosen, node], leaves, taken)
                taken[leaf] -= 1
