"""The levels of a fabric, from far to near; the last one is the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_core.api.fabric import HOSTNAME

_NO_NVLINK_FABRIC = "00000000-0000-0000-0000-000000000000"
"""Cluster UUID of a GPU whose NVLink ends at its own node; not the name of a shared domain."""
_UNKNOWN = frozenset({"", "no-imds-data"})
"""Label values that name no domain. OKE writes the second one if a node did not get its place."""


def is_known(value: str) -> bool:
    """Return True if the value of a topology label names a domain."""
    return value not in _UNKNOWN


@dataclass(frozen=True, slots=True)
class FabricLevel:
    """One level: its name, the node label that names the domain, and its oversubscription."""

    name: str
    node_label: str
    oversubscription: float = 1.0
    nvlink: bool = False
    """Whether GPUs of one domain communicate over NVLink: domains larger than a node (NVL72)."""
    optional: bool = False
    """Whether the level is removed if no node has the label, as for levels of presets."""

    def domain(self, labels: Mapping[str, str]) -> str | None:
        """Return the domain that a node's labels name; None if the label is missing or unknown."""
        value = labels.get(self.node_label, "")
        if not is_known(value) or (self.nvlink and value.startswith(_NO_NVLINK_FABRIC)):
            return None
        return value


Levels = tuple[FabricLevel, ...]

NODE = FabricLevel("node", HOSTNAME)
