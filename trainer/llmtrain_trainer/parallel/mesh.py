"""The grid of ranks and its process groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmtrain_core.layout import SHORT, Dimension, Layout

ORDER: tuple[Dimension, ...] = ("pipeline", "replicate", "data", "context", "tensor")
"""Outermost first: the rank formula of `llmtrain_core.layout` is this order, row by row."""

LONG: Mapping[str, Dimension] = {short: long for long, short in SHORT.items()}


@dataclass(frozen=True, slots=True)
class Grid:
    """This rank's place among all ranks.

    Degrees and coordinates come from the layout: slicing a mesh costs milliseconds each time.
    """

    layout: Layout
    mesh: DeviceMesh
    labels: Mapping[str, str]
    """Name of a process group -> short name of its dimension, or `world`."""

    @classmethod
    def build(cls, layout: Layout, device: str) -> Grid:
        """Create the mesh and one process group per dimension. Collective over all ranks."""
        names = tuple(SHORT[dimension] for dimension in ORDER)
        mesh = init_device_mesh(
            device, tuple(layout.degree(dimension) for dimension in ORDER), mesh_dim_names=names
        )
        # A dimension that spans the world reuses the default group: its own name is written last.
        labels: dict[str, str] = {}
        if dist.group.WORLD is not None:
            labels[dist.group.WORLD.group_name] = "world"
        for dimension, name in zip(ORDER, names, strict=True):
            if layout.degree(dimension) > 1:
                labels[mesh.get_group(name).group_name] = name
        return cls(layout, mesh, labels)

    def degree(self, name: str) -> int:
        """Return the size of a dimension by its short name."""
        return self.layout.degree(LONG[name])

    def coordinate(self, name: str) -> int:
        """Return this rank's position in a dimension."""
        return self.layout.coordinates(dist.get_rank())[LONG[name]]

    def group(self, name: str) -> dist.ProcessGroup:
        """Return the process group of a dimension."""
        return self.mesh.get_group(name)

    @property
    def replica(self) -> int:
        """Which share of every batch this rank sees."""
        return self.coordinate("rep") * self.degree("dp") + self.coordinate("dp")

    def shard_mesh(self) -> DeviceMesh:
        """Return the mesh for FSDP: `dp`, or `rep` x `dp` where the model is replicated (HSDP)."""
        return self.mesh["rep", "dp"] if self.degree("rep") > 1 else self.mesh["dp"]

    def limit(self, timeout: timedelta) -> None:
        """Make collectives of every group fail after `timeout`.

        Groups of a mesh keep torch's 30 minutes whatever the default group was given, so each one
        is set by itself.
        """
        groups = {dist.group.WORLD}
        groups.update(self.group(SHORT[d]) for d in ORDER if self.layout.degree(d) > 1)
        for group in groups:
            dist.set_timeout(timeout, group)
