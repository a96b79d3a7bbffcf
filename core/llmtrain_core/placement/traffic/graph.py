"""Traffic between blocks of ranks: the job as a graph of nodes.

Block i holds the ranks i g .. i g + g - 1 of one node. Edges between ranks are added up by block,
so that later steps scale with nodes and not with GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmtrain_core.layout import (
    DIMENSION_LABELS,
    DIMENSIONS,
    Dimension,
    GroupLabel,
    GroupRanks,
    Layout,
)
from llmtrain_core.placement.traffic.volumes import TrafficVolumes

Edges = dict[tuple[int, int], int]
"""Bytes per step by (sending block, receiving block). Equal blocks: traffic inside the node."""


def block_edges(
    layout: Layout, gpus_per_node: int, volumes: TrafficVolumes
) -> dict[Dimension, Edges]:
    """Return the traffic between blocks by kind of group."""
    found: dict[Dimension, Edges] = {}
    for kind in DIMENSIONS:
        volume = volumes.by_kind.get(kind)
        if volume is None or layout.group(DIMENSION_LABELS[kind]).size == 1:
            continue
        edges: Edges = {}
        weights = (volume.nbytes, volumes.wrap_bytes) if kind == "pipeline" else None
        for (a, b), (steps, wraps) in _hops(layout, gpus_per_node, kind).items():
            if weights is None:
                edges[a, b] = edges.get((a, b), 0) + (steps + wraps) * volume.nbytes
                continue
            nbytes = steps * weights[0] + wraps * weights[1]
            if nbytes:
                edges[a, b] = edges.get((a, b), 0) + nbytes
                edges[b, a] = edges.get((b, a), 0) + nbytes
        found[kind] = edges
    return found


def _hops(
    layout: Layout, gpus_per_node: int, kind: Dimension
) -> Mapping[tuple[int, int], tuple[int, int]]:
    """Count the hops of all groups of a kind between blocks: (to the next, from last to first).

    A hop is counted in one direction; a pipeline also sends the other way.
    """
    counts: dict[tuple[int, int], tuple[int, int]] = {}
    for a, b, hops, closes in _ring_hops(layout, gpus_per_node, kind):
        steps, wraps = counts.get((a, b), (0, 0))
        counts[a, b] = (steps, wraps + hops) if closes else (steps + hops, wraps)
    return counts


def _ring_hops(
    layout: Layout, gpus_per_node: int, kind: Dimension
) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (block, next block, hops, whether from last to first), whole blocks at once if aligned.

    The next member of a ring is one stride away in the order of ranks.
    """
    group = layout.group(DIMENSION_LABELS[kind])
    stride, size = group.stride, group.size
    ranks, hops, width = layout.world_size, 1, gpus_per_node
    if stride % gpus_per_node == 0:
        stride, ranks, hops, width = stride // gpus_per_node, ranks // gpus_per_node, width, 1
    back = stride * (size - 1)
    for rank in range(ranks):
        closes = rank // stride % size == size - 1
        after = rank - back if closes else rank + stride
        yield rank // width, after // width, hops, closes


def groups_of_blocks(
    layout: Layout, gpus_per_node: int, label: GroupLabel
) -> dict[tuple[int, ...], int]:
    """Return the blocks that groups of a label span, with the number of groups that span them."""
    group, times, width, ranks = layout.group(label), 1, gpus_per_node, layout.world_size
    if group.stride % gpus_per_node == 0:  # whole blocks: count each once for all its ranks
        group = GroupRanks(group.stride // width, group.size)
        times, width, ranks = width, 1, ranks // width
    found: dict[tuple[int, ...], int] = {}
    for members in group.members(ranks):
        blocks = tuple(dict.fromkeys(member // width for member in members))
        found[blocks] = found.get(blocks, 0) + times
    return found
