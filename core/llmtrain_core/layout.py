"""Rank layout: which global rank holds which coordinate of the parallel grid, and the groups.

`rank = tp + T*(cp + C*(dp + D*(rep + R*pp)))`: tensor innermost, so that a tensor group is a run of
neighbouring ranks and fits inside one node; pipeline outermost, so that the dimension with the
least traffic spans the farthest nodes. The order is that of Megatron-LM (Narayanan et al., 2021,
arXiv:2104.04473, "tp-cp-dp-pp"), with the replicate dimension of HSDP between data and pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Literal

Dimension = Literal["tensor", "context", "data", "replicate", "pipeline"]
GroupKind = Literal["tensor", "context", "data", "replicate", "pipeline", "model"]

DIMENSIONS: tuple[Dimension, ...] = ("tensor", "context", "data", "replicate", "pipeline")
"""Innermost (fastest varying) first."""

SHORT: Mapping[Dimension, str] = MappingProxyType(
    {"tensor": "tp", "context": "cp", "data": "dp", "replicate": "rep", "pipeline": "pp"}
)
"""The field's short names: mesh dimensions, metric labels, the LAYOUT column."""

_KINDS: Mapping[GroupKind, frozenset[Dimension]] = MappingProxyType(
    {
        **{dimension: frozenset({dimension}) for dimension in DIMENSIONS},
        "model": frozenset({"tensor", "pipeline"}),
    }
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of the five parallel dimensions; their product is the world size.

    Experts are no dimension of their own: `expert` neighbours among the data and context ranks
    share them out. Raises ValueError for a degree below one.
    """

    tensor: int = 1
    context: int = 1
    data: int = 1
    replicate: int = 1
    pipeline: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for dimension in DIMENSIONS:
            if self.degree(dimension) < 1:
                raise ValueError(
                    f"{dimension}: {self.degree(dimension)} is not a parallel degree; use 1 or more"
                )

    def degree(self, dimension: Dimension) -> int:
        """Return the size of one dimension."""
        value: int = getattr(self, dimension)
        return value

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tensor * self.context * self.data * self.replicate * self.pipeline

    def rank(
        self,
        *,
        tensor: int = 0,
        context: int = 0,
        data: int = 0,
        replicate: int = 0,
        pipeline: int = 0,
    ) -> int:
        """Return the global rank at a coordinate. Raises ValueError outside the grid."""
        position = {
            "tensor": tensor,
            "context": context,
            "data": data,
            "replicate": replicate,
            "pipeline": pipeline,
        }
        rank = 0
        for dimension in reversed(DIMENSIONS):
            if not 0 <= position[dimension] < self.degree(dimension):
                raise ValueError(
                    f"{dimension}: {position[dimension]} is outside 0..{self.degree(dimension) - 1}"
                )
            rank = rank * self.degree(dimension) + position[dimension]
        return rank

    def coordinates(self, rank: int) -> dict[Dimension, int]:
        """Return the coordinate of a rank by dimension. Raises ValueError outside the world."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside 0..{self.world_size - 1}")
        position: dict[Dimension, int] = {}
        for dimension in DIMENSIONS:
            rank, position[dimension] = divmod(rank, self.degree(dimension))
        return position

    def groups(self, kind: GroupKind) -> list[list[int]]:
        """Return the groups of one kind: each a rising list of ranks; groups by first rank.

        A group holds the ranks that differ only in the kind's own dimensions; `model` is tensor
        and pipeline together: the ranks that hold one copy of the model.
        """
        inside = _KINDS[kind]
        outer = [d for d in reversed(DIMENSIONS) if d not in inside]
        inner = [d for d in reversed(DIMENSIONS) if d in inside]
        groups = [
            sorted(self.rank(**fixed, **moving) for moving in self._positions(inner))
            for fixed in self._positions(outer)
        ]
        return sorted(groups)

    def expert_groups(self) -> list[list[int]]:
        """Return the groups that deal the experts out, as `groups` does."""
        width = self.expert * self.tensor
        return [
            list(range(start, first + width, self.tensor))
            for first in range(0, self.world_size, width)
            for start in range(first, first + self.tensor)
        ]

    def _positions(self, dimensions: list[Dimension]) -> Iterator[dict[str, int]]:
        for values in product(*(range(self.degree(d)) for d in dimensions)):
            yield dict(zip(dimensions, values, strict=True))

    def __str__(self) -> str:
        """Return the LAYOUT column: `tp8·pp4·dp16`, dimensions of size one left out."""
        order: tuple[Dimension, ...] = ("tensor", "context", "pipeline", "data", "replicate")
        parts = [f"{SHORT[d]}{self.degree(d)}" for d in order if self.degree(d) > 1]
        parts += [f"ep{self.expert}"] if self.expert > 1 else []
        return "·".join(parts) or "dp1"
