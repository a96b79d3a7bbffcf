"""Rates of a fabric's links: what a node and an NVLink domain can move per second."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api.fabric import FabricSpec, Nics, NvLink

GBIT = 1e9 / 8
GBYTE = 1e9


@dataclass(frozen=True, slots=True)
class Links:
    """Rates in bytes per second and direction. The defaults are those of an HGX H100 node."""

    nic: float = 8 * 400 * GBIT
    """All network interfaces of one node together."""
    nvlink: float = 450 * GBYTE
    """One GPU to the other GPUs of its NVLink domain."""


def links_of(spec: FabricSpec) -> Links:
    """Return the rates that a Fabric names. `gbytesPerSecond` counts both directions, so a half."""
    nics, nvlink = spec.nics or Nics(), spec.nvlink or NvLink()
    return Links(
        nic=nics.per_node * nics.gbits_per_second * GBIT,
        nvlink=nvlink.gbytes_per_second * GBYTE / 2,
    )
