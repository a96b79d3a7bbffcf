"""The grid of ranks and its process groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmtrain_core.layout import Dimension, GroupLabel, Layout
from llmtrain_core.plan.gradient_sync import EXACT_SYNC, SyncScheme

LABELS: Mapping[str, GroupLabel] = {
    "tp": "tp",
    "cp": "cp",
    "ep": "ep",
    "fsdp": "dp",
    "efsdp": "edp",
    "dp_replicate": "rep",
    "intra_rack": "rep-near",
    "inter_rack": "rep-far",
    "pp": "pp",
}
"""Name of a process group -> its public label, whose ranks `Layout.group` defines."""

RACK_GROUPS = ("intra_rack", "inter_rack")
"""Groups of a hierarchical scheme: the replicas of a rack, and those at its position in others."""

MESH = ("pp", "dp_replicate", "fsdp", "tp")
"""Dimensions of the mesh, outermost first: the rank formula of `llmtrain_core.layout`. Context
ranks hold the same weights, so `fsdp` shards over data and context ranks. The context group, which
only attention uses, is not part of the mesh."""

EXPERT_MESH = ("pp", "dp_replicate", "efsdp", "ep", "tp")
"""The same ranks with `fsdp` split in two: neighboring ranks that share the experts (`ep`), and
ranks that hold the same experts (`efsdp`). A separate mesh for the parameters of experts only."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The mesh of all ranks, its process groups, and this rank's coordinates.

    Degrees and coordinates come from the layout, because slicing a mesh takes milliseconds.
    """

    layout: Layout
    mesh: DeviceMesh
    groups: Mapping[str, dist.ProcessGroup]
    """Every group with more than one rank, by a name of `LABELS`."""
    expert_mesh: DeviceMesh | None
    """The mesh of the experts' parameters, if the layout has expert parallelism."""
    labels: Mapping[str, str]
    """`ProcessGroup.group_name` -> public label of the group, or `world`."""

    @classmethod
    def build(cls, layout: Layout, device: str, sync: SyncScheme = EXACT_SYNC) -> Grid:
        """Create the mesh and one process group per dimension. Collective over all ranks."""
        sizes = tuple(layout.group(LABELS[name]).size for name in MESH)
        mesh = init_device_mesh(device, sizes, mesh_dim_names=MESH)
        groups = {
            name: mesh.get_group(name) for name, size in zip(MESH, sizes, strict=True) if size > 1
        }
        if layout.context > 1:
            groups["cp"] = _own_group(layout, "cp")
        groups.update(_rack_groups(layout, sync))
        expert_mesh = _expert_mesh(layout, device) if layout.expert > 1 else None
        # a dimension that spans the world uses the default group, so its own label is written last
        labels: dict[str, str] = {}
        if dist.group.WORLD is not None:
            labels[dist.group.WORLD.group_name] = "world"
        if expert_mesh is not None:
            # the mesh's own `ep` group may be the `fsdp` group, and would share its label
            groups["ep"] = _own_group(layout, "ep")
            if layout.group("edp").size > 1:
                groups["efsdp"] = expert_mesh.get_group("efsdp")
            labels[expert_mesh.get_group("tp").group_name] = "tp"
        labels.update((group.group_name, LABELS[name]) for name, group in groups.items())
        return cls(layout, mesh, groups, expert_mesh, labels)

    def with_racks(self, sync: SyncScheme) -> Grid:
        """Return the grid with the groups of a scheme's racks. Collective over all ranks.

        It replaces this one, whose groups of racks end.
        """
        groups = {name: group for name, group in self.groups.items() if name not in RACK_GROUPS}
        labels = dict(self.labels)
        for name in RACK_GROUPS:  # in the same order on all ranks: NCCL ends a group together
            if name in self.groups:
                labels.pop(self.groups[name].group_name, None)
                dist.destroy_process_group(self.groups[name])
        racks = _rack_groups(self.layout, sync)
        labels.update((group.group_name, LABELS[name]) for name, group in racks.items())
        return replace(self, groups={**groups, **racks}, labels=labels)

    def degree(self, dimension: Dimension) -> int:
        """Return the size of a dimension of the layout."""
        return self.layout.degree(dimension)

    def coordinate(self, dimension: Dimension) -> int:
        """Return this rank's position in a dimension of the layout."""
        return self.layout.coordinates(dist.get_rank())[dimension]

    @property
    def replica(self) -> int:
        """Index of the part of every batch that this rank reads."""
        return self.coordinate("replicate") * self.degree("data") + self.coordinate("data")

    def limit(self, timeout: timedelta) -> None:
        """Make collectives of every group fail after `timeout`.

        Groups of a mesh have torch's 30-minute timeout, whatever the timeout of the default group,
        so each one is set.
        """
        for group in {dist.group.WORLD, *self.groups.values()}:
            dist.set_timeout(timeout, group)


def _expert_mesh(layout: Layout, device: str) -> DeviceMesh:
    """Return the mesh of the experts' parameters. Collective over all ranks."""
    sizes = tuple(layout.group(LABELS[name]).size for name in EXPERT_MESH)
    return init_device_mesh(device, sizes, mesh_dim_names=EXPERT_MESH)


def _rack_groups(layout: Layout, sync: SyncScheme) -> dict[str, dist.ProcessGroup]:
    """Return this rank's groups of racks, if the scheme has any. Collective over all ranks."""
    if not sync.is_hierarchical(layout.replicate):
        return {}
    return {name: _own_group(layout, LABELS[name], sync.replicas_per_rack) for name in RACK_GROUPS}


def _own_group(layout: Layout, label: GroupLabel, copies_per_rack: int = 1) -> dist.ProcessGroup:
    """Return this rank's group of a label. Collective over all ranks."""
    ranks = layout.group(label, copies_per_rack).members(layout.world_size)
    mine, _ = dist.new_subgroups_by_enumeration([list(members) for members in ranks])
    assert isinstance(mine, dist.ProcessGroup)  # every rank is a member
    return mine
