"""Utilisation of this pod's devices: from NVML if there is a GPU, else from the ranks' CPU time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from llmtrain_core.node_health.xid import Xid
from llmtrain_trainer.metrics.devices import DeviceMonitor, DeviceName, DeviceUse
from llmtrain_trainer.metrics.nvml import NvmlMonitor

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class CpuMonitor:
    """CPU seconds per second of each rank. A rank computes on one thread, so 1.0 is fully busy.

    A rate needs two reads: the first read of a process only starts its interval.
    """

    source: Literal["cpu", "nvml"] = "cpu"

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, float]] = {}

    def names(self) -> list[DeviceName]:
        """See `DeviceMonitor`."""
        return []

    def xids(self) -> list[Xid]:
        """See `DeviceMonitor`."""
        return []

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """See `DeviceMonitor`."""
        uses = []
        for index, pid in enumerate(pids):
            try:
                use = self._read_process(index, pid)
            except (OSError, ValueError, IndexError):
                continue  # the rank has just exited
            if use is not None:
                uses.append(use)
        return uses

    def _read_process(self, index: int, pid: int) -> DeviceUse | None:
        # fields 3.. of proc(5), after the name of the command, which can contain any character
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu, now = (int(fields[11]) + int(fields[12])) / _TICKS, time.monotonic()
        cpu_before, before = self._last.get(pid, (cpu, now))
        self._last[pid] = (cpu, now)
        if now <= before:
            return None
        ratio = (cpu - cpu_before) / (now - before)
        resident = int(fields[21]) * _PAGE
        return DeviceUse(index, min(1.0, max(0.0, ratio)), {"resident": resident})


def open_monitor() -> DeviceMonitor:
    """Return the monitor of NVML if the library and a device are present, else that of the CPU."""
    try:
        return NvmlMonitor()
    except Exception:  # NVML has its own error classes; any error means that no GPU can be read
        return CpuMonitor()
