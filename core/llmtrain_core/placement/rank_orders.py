"""Orders in which blocks of ranks are placed: whole groups first, or tiles of two dimensions.

The blocks are a grid of the parallel dimensions, less what fits inside a node. An order walks the
grid one dimension after the other, from inner to outer; a dimension can be cut in two, so that the
inner parts of two dimensions make a tile. Blocks that follow each other in an order end up near
each other, so the groups of the inner dimension stay together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from llmtrain_core.layout import DIMENSIONS, Layout

MOST_DIMENSIONS = 3
"""Dimensions of which all permutations are tried. With more, the inner ones keep their order."""

MOST_UNEVEN = 64
"""Jobs of up to this many blocks also try tiles that do not divide the grid."""


@dataclass(frozen=True, slots=True)
class RankOrder:
    """A sequence of all blocks."""

    name: str
    blocks: tuple[int, ...]
    units: tuple[int, ...]
    """Sizes of runs of blocks that belong together, ascending: whole groups, whole tiles."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of the grid of blocks, or a part of one."""

    name: str
    size: int
    stride: int
    """Distance of neighbours in block number."""


def axes_of(layout: Layout, gpus_per_node: int) -> list[Axis] | None:
    """Return the dimensions of the grid of blocks, innermost first.

    Return None if groups start in the middle of a node: then the blocks form no grid.
    """
    inside, stride = gpus_per_node, 1
    axes = []
    for dimension in DIMENSIONS:
        degree = layout.degree(dimension)
        if inside % degree == 0:
            inside //= degree
            continue
        if degree % inside:
            return None
        size = degree // inside
        inside = 1
        axes.append(Axis(dimension, size, stride))
        stride *= size
    return axes


def orders(layout: Layout, gpus_per_node: int, leaf_size: int) -> list[RankOrder]:
    """Return the orders to try, the natural one first; a leaf domain holds `leaf_size` blocks.

    A tensor group that spans nodes stays together in all of them.
    """
    count = layout.world_size // gpus_per_node
    axes = axes_of(layout, gpus_per_node)
    if axes is None:
        return [RankOrder("ranks in order", tuple(range(count)), (1, count))]
    inner = [axis for axis in axes if axis.name == "tensor"]
    outer = [axis for axis in axes if axis.name != "tensor"]
    fixed, moving = outer[:-MOST_DIMENSIONS], outer[-MOST_DIMENSIONS:]
    found: dict[tuple[int, ...], RankOrder] = {}
    for chosen in permutations(moving):
        order = _walk(_name(chosen), [*inner, *fixed, *chosen])
        found.setdefault(order.blocks, order)
    for tiles in _tilings([*fixed, *moving], leaf_size // max(1, inner[0].size if inner else 1)):
        order = _walk(_tile_name(tiles), [*inner, *tiles])
        found.setdefault(order.blocks, order)
    if count <= MOST_UNEVEN and not fixed and len(moving) == 2 and not inner:
        for order in _uneven(moving, leaf_size):
            found.setdefault(order.blocks, order)
    return list(found.values())


def _uneven(axes: Sequence[Axis], leaf_size: int) -> Iterator[RankOrder]:
    """Yield tiles that do not divide the grid: tiles at its far edges are smaller."""
    for first, second in permutations(axes):
        for height in range(2, min(second.size, leaf_size // 2) + 1):
            width = min(first.size, leaf_size // height)
            if second.size % height == 0 and first.size % width == 0:
                continue
            blocks = [
                x * first.stride + y * second.stride
                for top in range(0, second.size, height)
                for left in range(0, first.size, width)
                for y in range(top, min(top + height, second.size))
                for x in range(left, min(left + width, first.size))
            ]
            name = f"tiles of {width} {first.name} x {height} {second.name}"
            yield RankOrder(name, tuple(blocks), (1, width * height, len(blocks)))


def _walk(name: str, axes: Sequence[Axis]) -> RankOrder:
    blocks, units = [0], [1]
    for axis in axes:
        blocks = [block + step * axis.stride for step in range(axis.size) for block in blocks]
        if axis.size > 1:
            units.append(len(blocks))
    return RankOrder(name, tuple(blocks), tuple(units))


def _tilings(axes: Sequence[Axis], leaf_size: int) -> Iterator[list[Axis]]:
    """Split two dimensions so that a tile fills a leaf domain; the widest tile for every height.

    The other dimensions come after the tile, in their order.
    """
    for first in axes:
        for second in axes:
            if first is second:
                continue
            rest = [axis for axis in axes if axis not in (first, second)]
            for height in _divisors(second.size)[1:]:
                widths = [w for w in _divisors(first.size) if w * height <= leaf_size]
                if not widths or widths[-1] == 1:
                    continue
                parts = (*_cut(first, widths[-1]), *_cut(second, height))
                yield [parts[0], parts[2], parts[1], parts[3], *rest]


def _cut(axis: Axis, inner: int) -> tuple[Axis, Axis]:
    return (
        Axis(axis.name, inner, axis.stride),
        Axis(axis.name, axis.size // inner, axis.stride * inner),
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _name(axes: Sequence[Axis]) -> str:
    return f"{axes[0].name} groups together" if axes else "ranks in order"


def _tile_name(tiles: Sequence[Axis]) -> str:
    first, second = tiles[0], tiles[1]
    return f"tiles of {first.size} {first.name} x {second.size} {second.name}"
