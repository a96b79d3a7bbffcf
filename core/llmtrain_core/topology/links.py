"""Rates of a fabric's links: what a node and an NVLink domain can move per second."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api.fabric import FabricSpec, Nics, NvLink

GBIT = 1e9 / 8
GBYTE = 1e9
_NICS, _NVLINK = Nics(), NvLink()
"""Those of an HGX H100 node. Built once: a placement asks for them for every domain and node."""


@dataclass(frozen=True, slots=True)
class Links:
    """The links that a Fabric names. Placement takes those of an HGX H100 node for the others."""

    nics: Nics | None = None
    nvlink: NvLink | None = None

    @property
    def nic_rate_per_node(self) -> float:
        """Rate of all network interfaces of one node together, in bytes per second."""
        nics = self.nics or _NICS
        return nics.per_node * nics.gbits_per_second * GBIT

    @property
    def nvlink_rate_per_gpu(self) -> float:
        """Rate of one GPU to the others of its NVLink domain, in bytes per second and direction.

        `gbytesPerSecond` counts both directions.
        """
        return (self.nvlink or _NVLINK).gbytes_per_second * GBYTE / 2

    def nic_rate_per_gpu(self, ranks: int, gpus: int) -> float | None:
        """Return the rate of one GPU to other nodes, in bytes per second; None if not named.

        `ranks` of the `gpus` of a node send at the same time. NCCL gives each GPU the interfaces
        next to it; GPUs share where there are fewer interfaces.
        """
        if self.nics is None:
            return None
        own = max(1, self.nics.per_node // gpus)
        shared = self.nics.per_node / ranks
        return min(own, shared) * self.nics.gbits_per_second * GBIT


def links_of(spec: FabricSpec) -> Links:
    """Return the links that a Fabric names."""
    return Links(spec.nics, spec.nvlink)
