"""A second, slow reading of the cost model: every byte of every edge on every link it passes.

Written from the words of the model alone (docstring of `llmtrain_core.placement.cost`), rank by
rank, so that it checks the product's evaluation. The ranks of a group form a ring in rising order;
a pipeline is a chain with traffic both ways. An edge inside a block or an NVLink domain loads
NVLink of both nodes; any other edge loads the interfaces of both nodes and the uplink of every
domain that it leaves or enters. A phase takes as long as its slowest link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.free_nodes import Path, free_paths

Edge = tuple[int, int]
Flows = Mapping[Edge, float]
"""Bytes by (sending block, receiving block); equal blocks: inside the node."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A job's flows between its blocks, and the capacities of the tree. Bytes, seconds, bytes/s."""

    blocks: int
    flows: Mapping[str, Flows]
    exposed: Mapping[str, float]
    rooms: tuple[Path, ...]
    """Nodes that can hold a block."""
    uplink: Mapping[Path, float]
    """Rate of every domain's uplink, in one direction."""
    interface: float
    """Rate of a node's network interfaces together."""
    nvlink: float
    """Rate of the NVLink of a block's GPUs together."""
    nvlink_depth: int
    """Domains in the path of an NVLink domain; the whole path where it is the node."""

    def seconds(self, order: Sequence[Path]) -> float:
        """Return the exposed communication time of a placement: the node of every block."""
        return sum(self.by_kind(order).values())

    def by_kind(self, order: Sequence[Path]) -> dict[str, float]:
        """Return the exposed seconds of every kind."""
        return {
            kind: self.exposed[kind] * self._slowest(flows, order)
            for kind, flows in self.flows.items()
        }

    def _slowest(self, flows: Flows, order: Sequence[Path]) -> float:
        seconds: dict[tuple[str, Path], float] = defaultdict(float)
        for (source, target), amount in flows.items():
            left, entered = order[source], order[target]
            near = left[: self.nvlink_depth] == entered[: self.nvlink_depth]
            rate = self.nvlink if near else self.interface
            seconds[f"out {rate}", left] += amount / rate
            seconds[f"in {rate}", entered] += amount / rate
            for depth in range(1, len(left)):
                if not near and left[:depth] != entered[:depth]:
                    seconds["out", left[:depth]] += amount / self.uplink[left[:depth]]
                    seconds["in", entered[:depth]] += amount / self.uplink[entered[:depth]]
        return max(seconds.values(), default=0.0)


def problem_of(request: Request, snapshot: Snapshot) -> Problem:
    """Read a request and a snapshot as the words of the cost model say."""
    levels, traffic = snapshot.levels, request.traffic
    wide = [depth for depth, level in enumerate(levels, 1) if level.nvlink]
    node_rate = snapshot.links.nic_rate_per_node / levels[-1].oversubscription
    uplink = {
        domain: count
        * node_rate
        / prod(each.oversubscription for each in levels[len(domain) - 1 : -1])
        * (1 - min(0.9, snapshot.uplinks.get(domain, 0.0)))
        for domain, count in _sizes(snapshot).items()
    }
    flows = {kind: _flows(request, kind) for kind in traffic.by_kind}
    return Problem(
        blocks=request.nodes,
        flows={kind: found for kind, found in flows.items() if found},
        exposed={kind: volume.exposed for kind, volume in traffic.by_kind.items()},
        rooms=tuple(free_paths(request, snapshot)),
        uplink=uplink,
        interface=node_rate,
        nvlink=snapshot.links.nvlink_rate_per_gpu * request.gpus_per_node,
        nvlink_depth=wide[0] if wide else len(levels),
    )


def _sizes(snapshot: Snapshot) -> dict[Path, int]:
    sizes: dict[Path, int] = defaultdict(int)
    for node in snapshot.nodes:
        path = snapshot.path(node)
        for depth in range(1, len(path)):
            sizes[path[:depth]] += 1
    return sizes


def _flows(request: Request, kind: str) -> Flows:
    volumes, g = request.traffic, request.gpus_per_node
    nbytes = volumes.by_kind[kind].nbytes  # type: ignore[index]
    flows: dict[Edge, float] = defaultdict(float)
    for group in _groups(request.layout, kind):
        closing = (group[-1], group[0])
        if len(group) == 1:
            continue
        steps = [(edge, nbytes) for edge in pairwise(group)]
        if kind == "pipeline":
            steps.append((closing, volumes.wrap_bytes))
            steps += [((b, a), amount) for (a, b), amount in steps]
        else:
            steps.append((closing, nbytes))
        for (a, b), amount in steps:
            if amount:
                flows[a // g, b // g] += amount
    return dict(flows)


def _groups(layout: Layout, kind: str) -> Iterator[list[int]]:
    """Yield the groups; FSDP shards over the ranks of context and data together."""
    moving = {"context", "data"} if kind == "data" else {kind}
    names = ("tensor", "context", "data", "replicate", "pipeline")
    fixed = [name for name in names if name not in moving]
    spans = {name: range(layout.degree(name)) for name in names}  # type: ignore[arg-type]
    for outer in product(*(spans[name] for name in fixed)):
        yield sorted(
            layout.rank(**dict(zip((*fixed, *moving), (*outer, *inner), strict=True)))
            for inner in product(*(spans[name] for name in moving))
        )
