"""The traffic of a job between its blocks, as bit sets.

A set of blocks is an integer with one bit per block. The traffic from a set to all other blocks is
counted with one shift for every distance between communicating blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.layout import Dimension, Layout
from llmtrain_core.placement.traffic.graph import Edges, block_edges
from llmtrain_core.placement.traffic.volumes import TrafficVolumes

Blocks = int
"""A set of blocks: bit i stands for block i."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Edges of one kind that carry equally much, all between blocks at one distance."""

    shift: int
    """Receiving block less sending block."""
    nbytes: int
    senders: Blocks
    receivers: Blocks


@dataclass(frozen=True, slots=True)
class Traffic:
    """The edges of a job between its blocks."""

    kinds: tuple[Dimension, ...]
    weights: tuple[float, ...]
    """Exposed share by kind."""
    adjacent: tuple[tuple[tuple[int, int, int, int], ...], ...]
    """By block: (other block, kind, bytes to it, bytes from it)."""
    flows: tuple[tuple[Flow, ...], ...]
    """The same edges by kind, for whole sets of blocks at once."""
    inside: tuple[tuple[int, ...], ...]
    """Bytes that stay inside a block, by kind and block."""
    totals: tuple[dict[tuple[int, int], Blocks], ...]
    """By kind: the blocks that send and receive as much, what stays inside counted as both."""
    most_between_blocks: tuple[int, ...]
    """By kind: the most bytes that a block sends to others, or receives from them."""
    gpus_per_node: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.adjacent)


def traffic_of(layout: Layout, gpus_per_node: int, volumes: TrafficVolumes) -> Traffic:
    """Add up the traffic of a job by pairs of blocks."""
    nodes = layout.world_size // gpus_per_node
    edges = block_edges(layout, gpus_per_node, volumes)
    kinds = tuple(edges)
    pairs: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(nodes)]
    inside = [[0] * nodes for _ in kinds]
    for kind, name in enumerate(kinds):
        for (a, b), nbytes in edges[name].items():
            if a == b:
                inside[kind][a] += nbytes
                continue
            pairs[a].setdefault((b, kind), [0, 0])[0] += nbytes
            pairs[b].setdefault((a, kind), [0, 0])[1] += nbytes
    return Traffic(
        kinds,
        tuple(volumes.by_kind[name].exposed for name in kinds),
        tuple(
            tuple((other, kind, out, into) for (other, kind), (out, into) in sorted(p.items()))
            for p in pairs
        ),
        tuple(_flows(edges[name]) for name in kinds),
        tuple(map(tuple, inside)),
        tuple(_totals(edges[name], nodes) for name in kinds),
        tuple(_most_between_blocks(edges[name]) for name in kinds),
        gpus_per_node,
    )


def _totals(edges: Edges, blocks: int) -> dict[tuple[int, int], Blocks]:
    """Group blocks by the bytes that they send and receive."""
    out, into = [0] * blocks, [0] * blocks
    for (a, b), nbytes in edges.items():
        out[a] += nbytes
        into[b] += nbytes
    found: dict[tuple[int, int], Blocks] = {}
    for block, both in enumerate(zip(out, into, strict=True)):
        found[both] = found.get(both, 0) | 1 << block
    return found


def _most_between_blocks(edges: Edges) -> int:
    """Return the most bytes of one block to others or from others."""
    out: Counter[int] = Counter()
    into: Counter[int] = Counter()
    for (a, b), nbytes in edges.items():
        if a != b:
            out[a] += nbytes
            into[b] += nbytes
    return max(*out.values(), *into.values(), 0, 0)


def _flows(edges: Edges) -> tuple[Flow, ...]:
    """Group edges between blocks by distance and bytes: a ring has two distances, a chain two."""
    alike: dict[tuple[int, int], list[int]] = {}
    for (a, b), nbytes in edges.items():
        if a != b and nbytes:
            ends = alike.setdefault((b - a, nbytes), [0, 0])
            ends[0] |= 1 << a
            ends[1] |= 1 << b
    return tuple(Flow(*key, *ends) for key, ends in sorted(alike.items()))


def crossing(flows: Sequence[Flow], blocks: Blocks, around: Blocks) -> tuple[int, int]:
    """Return the bytes from some blocks to all others but those around them, and back."""
    out = into = 0
    for flow in flows:
        to = _shifted(blocks & flow.senders, flow.shift)
        since = _shifted(blocks & flow.receivers, -flow.shift)
        out += flow.nbytes * (to & ~around).bit_count()
        into += flow.nbytes * (since & ~around).bit_count()
    return out, into


def blocks_far(flow: Flow, around: Blocks) -> tuple[Blocks, Blocks]:
    """Return those of some blocks that send to others than these, and that receive from others."""
    to = _shifted(around & flow.senders, flow.shift)
    since = _shifted(around & flow.receivers, -flow.shift)
    return _shifted(to & ~around, -flow.shift), _shifted(since & ~around, flow.shift)


def _shifted(blocks: Blocks, distance: int) -> Blocks:
    return blocks << distance if distance > 0 else blocks >> -distance
