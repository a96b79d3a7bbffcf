"""Arnold's scheduling program, restated, and the spread that it minimises.

Source: He et al., "Efficient Pre-Training of LLMs via Topology-Aware Communication Alignment on
More Than 9600 GPUs", NeurIPS 2025, arXiv:2509.15940, section on the scheduling algorithm. The job
is a grid of nodes, DP x PP (tensor groups stay in a node); the spread of a group is the number of
minipods it spans. One kind is aligned: its groups are packed whole. The program minimises
alpha y + beta T over group shares p, with y the minipods in use, T the most minipods that one
aligned group spans, and the capacity of every minipod in nodes. Alpha 0 aligns at any price; the
other end uses the fewest minipods. Then consecutive ranks go to nodes of the same minipod.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from llmtrain_core.layout import Layout


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks of a job by pipeline stage (column) and place in the data rings (row)."""

    rows: int
    stages: int

    @classmethod
    def of(cls, layout: Layout, gpus_per_node: int) -> Grid:
        return cls(layout.data * layout.tensor // gpus_per_node, layout.pipeline)

    @property
    def rings(self) -> list[list[int]]:
        """Blocks of every data ring: one per stage, since pipeline is outermost."""
        return [[s * self.rows + r for r in range(self.rows)] for s in range(self.stages)]

    @property
    def domain_paths(self) -> list[list[int]]:
        """Blocks of every pipeline."""
        return [[s * self.rows + r for s in range(self.stages)] for r in range(self.rows)]


def spread(groups: Iterable[Sequence[int]], minipods: Sequence[object]) -> int:
    """Return the most minipods that one group spans; `minipods` is by block."""
    return max(len({minipods[block] for block in group}) for group in groups)


def arnold(
    groups: Sequence[Sequence[int]], room: Sequence[int], *, alpha: float, work: float = 5.0
) -> list[int]:
    """Return the minipod of every block. `groups` are those to align, all of one size.

    `room` holds the free nodes of every minipod; weights are alpha and 1 - alpha.
    """
    model, pods, size = cp_model.CpModel(), range(len(room)), len(groups[0])
    share = [[model.new_int_var(0, size, "") for _ in pods] for _ in groups]
    spans = [[model.new_bool_var("") for _ in pods] for _ in groups]
    used = [model.new_bool_var("") for _ in pods]
    widest = model.new_int_var(1, len(room), "T")
    for parts, touched in zip(share, spans, strict=True):
        model.add(sum(parts) == size)
        model.add(sum(touched) <= widest)
        for part, touch in zip(parts, touched, strict=True):
            model.add(part <= size * touch)
    for pod in pods:
        model.add(sum(parts[pod] for parts in share) <= room[pod] * used[pod])
    model.minimize(round(1000 * alpha) * sum(used) + round(1000 * (1 - alpha)) * widest)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = work
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise ValueError("the job does not fit into the minipods")
    where: dict[int, int] = {}
    for group, parts in zip(groups, share, strict=True):
        counts = [solver.value(part) for part in parts]
        filled = [pod for pod, count in enumerate(counts) for _ in range(count)]
        where |= dict(zip(group, filled, strict=True))
    return [where[block] for block in range(len(where))]


def split(nodes: int, minipods: int, skew: float) -> list[int]:
    """Return free nodes by minipod: even for skew 0, else in arithmetic progression about even."""
    even = nodes / minipods
    middle = (minipods - 1) / 2
    parts = [round(even * (1 + skew * (pod - middle) / max(middle, 1))) for pod in range(minipods)]
    parts[minipods // 2] += nodes - sum(parts)
    return parts
