"""How busy this pod's devices are: NVML where there is one, else the ranks' CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """One device (or rank, on a CPU) at one moment."""

    gpu: int
    """Local number."""
    ratio: float
    """0 .. 1."""
    memory: dict[str, int]
    """Bytes by kind."""
    activity: Mapping[str, float] = field(default_factory=dict)
    """Share of a unit's time or peak rate since the last read, 0 .. 1, by unit."""
    joules: float | None = None
    """Energy since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class DeviceName:
    """What other exporters call a device."""

    uuid: str
    model: str


class UtilizationProbe(Protocol):
    """A source of utilisation."""

    source: Literal["cpu", "nvml"]

    def names(self) -> list[DeviceName]:
        """Return the devices in order of local number, none without any."""

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """Return the state of all devices; `pids` are the ranks, in order of local rank."""


class CpuProbe:
    """CPU seconds per second of each rank; a rank computes on one thread, so 1.0 is busy.

    A rate needs two reads: the first of a process only marks where its interval starts.
    """

    source: Literal["cpu", "nvml"] = "cpu"

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, float]] = {}

    def names(self) -> list[DeviceName]:
        """See `UtilizationProbe`."""
        return []

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """See `UtilizationProbe`."""
        uses = []
        for index, pid in enumerate(pids):
            try:
                use = self._one(index, pid)
            except (OSError, ValueError, IndexError):
                continue  # the rank has just ended
            if use is not None:
                uses.append(use)
        return uses

    def _one(self, index: int, pid: int) -> DeviceUse | None:
        # after the command's name, which may hold anything: fields 3.. of proc(5)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu, now = (int(fields[11]) + int(fields[12])) / _TICKS, time.monotonic()
        before_cpu, before = self._last.get(pid, (cpu, now))
        self._last[pid] = (cpu, now)
        if now <= before:
            return None
        ratio = (cpu - before_cpu) / (now - before)
        resident = int(fields[21]) * _PAGE
        return DeviceUse(index, min(1.0, max(0.0, ratio)), {"resident": resident})


def find_probe() -> UtilizationProbe:
    """Return NVML's probe where the library and a device are there, else the CPU's."""
    from llmtrain_trainer.metrics.nvml import NvmlProbe

    try:
        return NvmlProbe()
    except Exception:  # NVML raises its own errors by code; whatever it is, there is no GPU to read
        return CpuProbe()
