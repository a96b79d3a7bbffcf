"""The grid of ranks and its process groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmtrain_core.layout import SHORT, Dimension, Layout
from llmtrain_core.plan.gradient_sync import EXACT_SYNC, SyncScheme

LONG: Mapping[str, Dimension] = {short: long for long, short in SHORT.items()}

MESH = ("pp", "rep", "dp", "tp")
"""Dimensions of the mesh, outermost first: the rank formula of `llmtrain_core.layout`. Context
ranks hold the same weights and so are data ranks to FSDP: `dp` has both; their own group, which
only attention uses, stands beside the mesh."""

EXPERT_MESH = ("pp", "rep", "edp", "ep", "tp")
"""The same ranks with `dp` in two: neighbours that share out the experts, and those that hold the
same ones. A mesh of its own, for the parameters of experts only."""


@dataclass(frozen=True, slots=True)
class Grid:
    """This rank's place among all ranks.

    Degrees and coordinates come from the layout: slicing a mesh costs milliseconds each time.
    """

    layout: Layout
    mesh: DeviceMesh
    groups: Mapping[str, dist.ProcessGroup]
    """By short name, for every dimension with more than one rank; `dp`: data and context ranks,
    `ep` and `edp`: its two parts where experts are dealt out; `rep-near` and `rep-far`: copies in
    the same rack, and with the same place in every rack."""
    expert_mesh: DeviceMesh | None
    """Where experts are dealt out."""
    labels: Mapping[str, str]
    """Name of a process group -> short name of its dimension, or `world`."""

    @classmethod
    def build(cls, layout: Layout, device: str, sync: SyncScheme = EXACT_SYNC) -> Grid:
        """Create the mesh and one process group per dimension. Collective over all ranks."""
        sizes = (
            layout.pipeline,
            layout.replicate,
            layout.data * layout.context,
            layout.tensor,
        )
        mesh = init_device_mesh(device, sizes, mesh_dim_names=MESH)
        groups = {
            name: mesh.get_group(name) for name, size in zip(MESH, sizes, strict=True) if size > 1
        }
        if layout.context > 1:
            groups["cp"] = _own_group(layout.groups("context"))
        if sync.is_hierarchical(layout.replicate):
            groups |= _rack_groups(layout, sync.replicas_per_rack)
        expert_mesh = _expert_mesh(layout, device) if layout.expert > 1 else None
        # A dimension that spans the world reuses the default group: its own name is written last.
        labels: dict[str, str] = {}
        if dist.group.WORLD is not None:
            labels[dist.group.WORLD.group_name] = "world"
        if expert_mesh is not None:
            # the mesh's own may be the one of `dp`, which could not be told apart
            groups["ep"] = _own_group(layout.expert_groups())
            if layout.data * layout.context > layout.expert:
                groups["edp"] = expert_mesh.get_group("edp")
            labels[expert_mesh.get_group("tp").group_name] = "tp"
        labels.update((group.group_name, name) for name, group in groups.items())
        return cls(layout, mesh, groups, expert_mesh, labels)

    def degree(self, name: str) -> int:
        """Return the size of a dimension of the layout by its short name."""
        return self.layout.degree(LONG[name])

    def coordinate(self, name: str) -> int:
        """Return this rank's position in a dimension of the layout."""
        return self.layout.coordinates(dist.get_rank())[LONG[name]]

    @property
    def replica(self) -> int:
        """Which share of every batch this rank sees."""
        return self.coordinate("rep") * self.degree("dp") + self.coordinate("dp")

    def limit(self, timeout: timedelta) -> None:
        """Make collectives of every group fail after `timeout`.

        Groups of a mesh keep torch's 30 minutes whatever the default group was given, so each one
        is set by itself.
        """
        for group in {dist.group.WORLD, *self.groups.values()}:
            dist.set_timeout(timeout, group)


def _rack_groups(layout: Layout, near: int) -> dict[str, dist.ProcessGroup]:
    """Return the copies in this rank's rack, and those in its place in every rack. Collective."""
    copies = layout.groups("replicate")
    racks = [ranks[at : at + near] for ranks in copies for at in range(0, len(ranks), near)]
    across = [ranks[at::near] for ranks in copies for at in range(near)]
    return {"rep-near": _own_group(racks), "rep-far": _own_group(across)}


def _expert_mesh(layout: Layout, device: str) -> DeviceMesh:
    """Return the mesh of the experts' parameters. Collective over all ranks."""
    ranks = layout.data * layout.context
    sizes = (
        layout.pipeline,
        layout.replicate,
        ranks // layout.expert,
        layout.expert,
        layout.tensor,
    )
    return init_device_mesh(device, sizes, mesh_dim_names=EXPERT_MESH)


def _own_group(groups: list[list[int]]) -> dist.ProcessGroup:
    """Return this rank's group of groups that cover the world. Collective over all ranks."""
    mine, _ = dist.new_subgroups_by_enumeration(groups)
    assert isinstance(mine, dist.ProcessGroup)  # every rank is in one
    return mine
