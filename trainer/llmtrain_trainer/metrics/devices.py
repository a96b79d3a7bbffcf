"""What is measured of a device, and the interface of the monitors that measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llmtrain_core.node_health.xid import Xid


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """State of one device; on a CPU, of one rank."""

    gpu: int
    """Local number."""
    ratio: float
    """0 .. 1."""
    memory: dict[str, int]
    """Bytes by kind."""
    activity: Mapping[str, float] = field(default_factory=dict)
    """By unit: the share of its time or peak rate since the last read, 0 .. 1."""
    joules: float | None = None
    """Energy since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class DeviceName:
    """Identity of a device, as in the metrics of other exporters."""

    uuid: str
    model: str


class DeviceMonitor(Protocol):
    """Reads the utilisation of this pod's devices."""

    source: Literal["cpu", "nvml"]

    def names(self) -> list[DeviceName]:
        """Return the devices in order of local number; empty on a CPU."""

    def xids(self) -> list[Xid]:
        """Return the Xids of the devices since the last call."""

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """Return the state of all devices. `pids` are the ranks in order of local rank."""
