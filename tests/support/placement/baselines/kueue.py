"""Kueue's topology-aware scheduling, restated.

Source: kubernetes-sigs/kueue, keps/2724-topology-aware-scheduling/README.md ("Computing the
assignment", BestFit) and the comments of pkg/cache/scheduler/tas_flavor_snapshot.go. One pod asks
for a whole block, so a node fits one pod. Phase 1 counts what fits, from nodes upwards. Phase 2a
takes, at the asked level, the tightest domain that holds all pods; a preferred level is given up
level by level, and at the top the fullest-fitting domains are taken until all pods have a place.
Phase 2b goes down: the children of *all* chosen domains are pooled in one list, most room first,
and the last one is the tightest that holds the rest. The assignment is sorted by label values as
strings, and pod index i goes to the i-th node (the topology ungater's ranks).
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.free_nodes import Path, by_domain, depth_of, free_paths


def kueue(request: Request, snapshot: Snapshot, level: str) -> list[Path] | None:
    """Return the node of every pod index, or None. `level` is the preferred level.

    A request with a required level is annotated with that one only, since a pod set has one.
    """
    paths = free_paths(request, snapshot)
    required = request.require is not None
    asked = depth_of(snapshot, request.require or level)
    for depth in range(asked, 0, -1):
        domains = _most_room_first(by_domain(paths, depth))
        whole = [domain for domain in domains if len(domain) >= request.nodes]
        if whole:
            return _descend([_tightest(whole)], request.nodes, depth, len(snapshot.levels))
        if required:
            return None
    chosen = _take(_most_room_first(by_domain(paths, 1)), request.nodes)
    return chosen and _descend(chosen, request.nodes, 1, len(snapshot.levels))


Domain = Sequence[Path]


def _most_room_first(domains: dict[Path, list[Path]]) -> list[Domain]:
    ranked = sorted(domains.items(), key=lambda item: (-len(item[1]), item[0]))
    return [members for _, members in ranked]


def _tightest(domains: Sequence[Domain]) -> Domain:
    """Return the least domain; of equals the first in the order of the list."""
    return min(domains, key=len)


def _take(domains: Sequence[Domain], pods: int) -> list[Domain] | None:
    """Take domains in order, the last one best-fitted; None where they do not hold the pods."""
    chosen: list[Domain] = []
    for index, domain in enumerate(domains):
        if len(domain) >= pods:
            rest = [each for each in domains[index:] if len(each) >= pods]
            return [*chosen, _tightest(rest)]
        chosen.append(domain)
        pods -= len(domain)
    return None


def _descend(chosen: Sequence[Domain], pods: int, depth: int, levels: int) -> list[Path]:
    for below in range(depth + 1, levels + 1):
        pooled = by_domain((path for domain in chosen for path in domain), below)
        taken = _take(_most_room_first(pooled), pods)
        assert taken is not None, "the domains of one level hold what their parents hold"
        chosen = taken
    return sorted(path for domain in chosen for path in domain)
