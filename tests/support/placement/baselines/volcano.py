"""Volcano's network-topology-aware scheduling with HyperNode bin-packing, restated.

Sources: volcano-sh/volcano, docs/design/Network Topology Aware Scheduling.md; the plugin of the
same name; Huawei Cloud CCE, "hypernode-level bin packing" (fading 0.8). A HyperNode is a domain;
tier 1 is nearest. Hard mode: HyperNodes of the lowest tier that hold the whole job are dry-run
candidates, and the one with the highest (used + asked) / allocatable wins. Soft mode lets the first
task start anywhere. Then task by task: a node scores by the tier of the lowest HyperNode
that it shares with the tasks so far, ties by how many tasks its HyperNodes have already, then by
HyperNode bin-packing with weight 0.8^(tier-1), then by name. Task index i is rank block i.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.free_nodes import Path, by_domain, depth_of, free_paths

FADING = 0.8


def volcano(request: Request, snapshot: Snapshot, *, hard: bool = True) -> list[Path] | None:
    """Return the node of every task index, or None where the job does not fit.

    Hard mode without a required level may use the whole cluster: highestTierAllowed is the root.
    """
    paths = free_paths(request, snapshot)
    load = _Load.of(request, snapshot)
    if not hard and request.require is None:
        return _tasks(paths, request.nodes, load)
    ceiling = 0 if request.require is None else depth_of(snapshot, request.require)
    for depth in range(len(snapshot.levels), ceiling - 1, -1):
        fitting = {
            domain: members
            for domain, members in by_domain(paths, depth).items()
            if len(members) >= request.nodes
        }
        if fitting:
            asked = request.nodes * request.gpus_per_node
            best = min(fitting, key=lambda domain: (-load.ratio(domain, asked), domain))
            return _tasks(fitting[best], request.nodes, load)
    return None


@dataclass(frozen=True, slots=True)
class _Load:
    """GPUs allocatable and in use, by domain."""

    allocatable: Counter[Path]
    used: Counter[Path]

    @classmethod
    def of(cls, request: Request, snapshot: Snapshot) -> _Load:
        allocatable: Counter[Path] = Counter()
        used: Counter[Path] = Counter()
        for node in snapshot.nodes:
            path = snapshot.path(node)
            for depth in range(len(path) + 1):
                allocatable[path[:depth]] += node.allocatable.get(request.gpu_resource, 0)
                used[path[:depth]] += snapshot.used.get((node.name, request.gpu_resource), 0)
        return cls(allocatable, used)

    def ratio(self, domain: Path, asked: int = 0) -> float:
        return (self.used[domain] + asked) / max(1, self.allocatable[domain])

    def packed(self, path: Path) -> float:
        """Return the bin-packing score of a node: its HyperNodes' use, nearer tiers first."""
        depths = range(len(path) - 1, 0, -1)
        return sum(FADING**tier * self.ratio(path[:depth]) for tier, depth in enumerate(depths))


def _tasks(paths: Sequence[Path], count: int, load: _Load) -> list[Path] | None:
    """Place task after task. Nodes of one leaf differ in name only, so leaves compete."""
    if len(paths) < count:
        return None
    left = {leaf: sorted(nodes) for leaf, nodes in by_domain(paths, len(paths[0]) - 1).items()}
    packed = {leaf: load.packed(nodes[0]) for leaf, nodes in left.items()}
    chosen: list[Path] = []
    here: Counter[Path] = Counter()
    common: Path = ()
    for _ in range(count):
        best = min(
            left,
            key=lambda leaf: (
                -_shared(common, leaf),
                tuple(-here[leaf[:depth]] for depth in range(len(leaf), 0, -1)),
                -packed[leaf],
                leaf,
            ),
        )
        common = best if not chosen else best[: _shared(common, best)]
        chosen.append(left[best].pop(0))
        here.update(best[:depth] for depth in range(1, len(best) + 1))
        if not left[best]:
            del left[best]
    return chosen


def _shared(domain: Path, leaf: Path) -> int:
    """Return the depth of the lowest HyperNode that holds both."""
    depth = 0
    while depth < len(domain) and domain[depth] == leaf[depth]:
        depth += 1
    return depth
