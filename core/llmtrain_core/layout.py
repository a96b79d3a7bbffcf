"""Rank layout: which global rank holds which coordinate of the parallel grid, and the groups.

`rank = tp + T*(cp + C*(dp + D*(rep + R*pp)))`. Tensor is the innermost dimension, so a tensor group
has consecutive ranks and fits inside one node. Pipeline is the outermost dimension, so the least
traffic is between the most distant nodes. The order is that of Megatron-LM (Narayanan et al., 2021,
arXiv:2104.04473, "tp-cp-dp-pp"), with the replicate dimension of HSDP between data and pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Dimension = Literal["tensor", "context", "data", "replicate", "pipeline"]
GroupLabel = Literal["tp", "cp", "ep", "dp", "edp", "rep", "rep-near", "rep-far", "pp"]
"""Public label of a group of ranks: in metrics, in the plan and in the status.

`Layout.group` defines the ranks of each. `dp` is the FSDP group, which shards parameters over data
and context ranks. `ep` distributes the experts, and `edp` is the FSDP group of the experts: both
divide `dp`. `rep` has all replicas, `rep-near` the replicas of one rack, and `rep-far` one replica
of every rack.
"""
GroupKind = Literal[
    "tensor", "context", "expert", "data", "expertData", "replicate", "pipeline", "model"
]
"""Long name of a kind of group, as in `crossings` and on the command line."""

DIMENSIONS: tuple[Dimension, ...] = ("tensor", "context", "data", "replicate", "pipeline")
"""Dimensions, from the innermost (fastest varying) to the outermost."""

GROUP_LABELS: tuple[GroupLabel, ...] = get_args(GroupLabel)

DIMENSION_LABELS: Mapping[Dimension, GroupLabel] = MappingProxyType(
    {"tensor": "tp", "context": "cp", "data": "dp", "replicate": "rep", "pipeline": "pp"}
)
"""Short names of the dimensions. Each is also the label of the group that the dimension adds."""

KIND_LABELS: Mapping[GroupKind, GroupLabel] = MappingProxyType(
    {
        "tensor": "tp",
        "context": "cp",
        "data": "dp",
        "expert": "ep",
        "expertData": "edp",
        "replicate": "rep",
        "pipeline": "pp",
    }
)
"""Labels of the groups that depend on the layout only. `model` is not a process group."""


@dataclass(frozen=True, slots=True)
class GroupRanks:
    """The groups of one label. Each group has `size` ranks, which are `stride` apart."""

    stride: int
    size: int

    def members(self, ranks: int) -> Iterator[range]:
        """Yield the groups of the first `ranks` ranks, ordered by their first rank."""
        length = self.stride * self.size
        for start in range(0, ranks, length):
            for first in range(start, start + self.stride):
                yield range(first, first + length, self.stride)


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of the five parallel dimensions; their product is the world size.

    Experts are not a separate dimension: they are distributed over `expert` adjacent data and
    context ranks. Raises ValueError for a degree below one.
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

    def group(self, label: GroupLabel, copies_per_rack: int = 1) -> GroupRanks:
        """Return the ranks of the groups of a label; groups that do not exist have size one.

        The trainer's process groups, the plan and the placement all use this definition.
        `copies_per_rack` is `spec.training.gradientSync.copiesPerRack`.
        """
        fsdp, expert = self.context * self.data, self.expert
        replica = self.tensor * fsdp
        racks = self.replicate // copies_per_rack
        two_levels = copies_per_rack > 1 and racks > 1
        match label:
            case "tp":
                return GroupRanks(1, self.tensor)
            case "cp":
                return GroupRanks(self.tensor, self.context)
            case "dp":
                return GroupRanks(self.tensor, fsdp)
            case "ep":
                return GroupRanks(self.tensor, expert)
            case "edp":
                return GroupRanks(self.tensor * expert, fsdp // expert if expert > 1 else 1)
            case "rep":
                return GroupRanks(replica, self.replicate)
            case "rep-near":
                return GroupRanks(replica, copies_per_rack if two_levels else 1)
            case "rep-far":
                return GroupRanks(replica * copies_per_rack, racks if two_levels else 1)
            case "pp":
                return GroupRanks(replica * self.replicate, self.pipeline)

    def groups(self, kind: GroupKind) -> list[list[int]]:
        """Return the groups of one kind, ordered by first rank. Each is a sorted list of ranks.

        `data` is the FSDP group: data and context ranks. `model` is the tensor and pipeline ranks
        that hold one copy of the model.
        """
        if kind != "model":
            ranks = self.group(KIND_LABELS[kind]).members(self.world_size)
            return [list(members) for members in ranks]
        tensor, pipeline = self.group("tp"), self.group("pp")
        return [
            [
                first + stage + rank
                for stage in range(0, self.world_size, pipeline.stride)
                for rank in range(tensor.size)
            ]
            for first in range(0, pipeline.stride, tensor.size)
        ]

    def __str__(self) -> str:
        """Return the LAYOUT column, such as `tp8·pp4·dp16`, without dimensions of size one."""
        order: tuple[Dimension, ...] = ("tensor", "context", "pipeline", "data", "replicate")
        parts = [f"{DIMENSION_LABELS[d]}{self.degree(d)}" for d in order if self.degree(d) > 1]
        parts += [f"ep{self.expert}"] if self.expert > 1 else []
        return "·".join(parts) or "dp1"
