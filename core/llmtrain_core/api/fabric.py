"""`Fabric`: how the network of this cluster looks, from far to near."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmtrain_core.api.base import ApiModel, LabelKey, Name, Rule, list_map

HOSTNAME = "kubernetes.io/hostname"
"""The label that names the node itself."""


class Level(ApiModel):
    """One level of the network tree."""

    name: Name
    """Name of the level, for example spine, leaf or node."""
    node_label: LabelKey
    """Node label whose value names the domain of this level that the node sits in."""
    oversubscription: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Capacity of a domain's downlinks over that of its uplinks."""


class Nics(ApiModel):
    """Network interfaces of a node."""

    per_node: Annotated[int, Field(ge=1, le=64)] = 8
    """Interfaces per node."""
    gbits_per_second: Annotated[float, Field(gt=0, le=100000)] = 400.0
    """Rate of one interface, in Gbit/s."""


class NvLink(ApiModel):
    """The network between GPUs inside a node or a rack."""

    gbytes_per_second: Annotated[float, Field(gt=0, le=100000)] = 900.0
    """Rate of one GPU, both directions, in GB/s."""
    node_label: LabelKey | None = None
    """Node label of the NVLink domain, where a domain spans nodes."""


class FabricSpec(ApiModel):
    """Levels from far to near, or the name of a preset; exactly one of them."""

    preset: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of a known label scheme, for example topograph."""
    levels: Annotated[list[Level], Field(min_length=1, max_length=16), list_map("name")] | None = (
        None
    )
    """Levels from far to near; the last one is the node."""
    nics: Nics | None = None
    """Network interfaces of a node."""
    nvlink: NvLink | None = None
    """The network between GPUs."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.levels)",
            "set exactly one of preset and levels",
            holds=lambda self: (self.preset is None) != (self.levels is None),
        ),
        Rule(
            f"!has(self.levels) || self.levels[size(self.levels) - 1].nodeLabel == '{HOSTNAME}'",
            f"the last level is the node: its nodeLabel must be {HOSTNAME}",
            ".levels",
            lambda self: not self.levels or self.levels[-1].node_label == HOSTNAME,
        ),
    )
