"""Spec of the `Fabric` resource: the levels of the cluster network."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmtrain_core.api.base import ApiModel, LabelKey, Name, Rule, list_map

HOSTNAME = "kubernetes.io/hostname"
"""Label with the name of the node."""


class Level(ApiModel):
    """A level of the network topology."""

    name: Name
    """Name of the level, for example spine, leaf or node."""
    node_label: LabelKey
    """Node label whose value is the name of the node's domain at this level."""
    oversubscription: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Ratio of downlink to uplink capacity of a domain."""


class Nics(ApiModel):
    """Network interfaces of a node."""

    per_node: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of interfaces per node."""
    gbits_per_second: Annotated[float, Field(gt=0, le=100000)] = 400.0
    """Bandwidth of one interface in Gbit/s."""


class NvLink(ApiModel):
    """NVLink between the GPUs of a node or a rack."""

    gbytes_per_second: Annotated[float, Field(gt=0, le=100000)] = 900.0
    """Bandwidth of one GPU in GB/s, both directions together."""
    node_label: LabelKey | None = None
    """Node label of the NVLink domain. Set it if a domain spans several nodes."""


class FabricSpec(ApiModel):
    """Specification of the network. Exactly one of preset and levels must be set."""

    preset: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of a known node-label scheme, for example topograph."""
    levels: Annotated[list[Level], Field(min_length=1, max_length=16), list_map("name")] | None = (
        None
    )
    """Levels from the core of the network to the node. The last level must be the node."""
    nics: Nics | None = None
    """Network interfaces of a node."""
    nvlink: NvLink | None = None
    """NVLink between GPUs."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.levels)",
            "set exactly one of preset and levels",
            "",
            lambda self: (self.preset is None) != (self.levels is None),
        ),
        Rule(
            f"!has(self.levels) || self.levels[size(self.levels) - 1].nodeLabel == '{HOSTNAME}'",
            f"the last level is the node: its nodeLabel must be {HOSTNAME}",
            ".levels",
            lambda self: not self.levels or self.levels[-1].node_label == HOSTNAME,
        ),
    )
