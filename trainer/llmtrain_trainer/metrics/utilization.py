"""How busy this pod's devices are: NVML where there is one, else the ranks' CPU time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

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


class UtilizationProbe(Protocol):
    """A source of utilisation."""

    source: Literal["cpu", "nvml"]

    def device_name(self) -> str | None:
        """Return the product name of the devices, None without any."""

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """Return the state of all devices; `pids` are the ranks, in order of local rank."""


class NvmlProbe:
    """NVIDIA's management library.

    Its ratio is the share of time in which any kernel ran: 1.0 also for a GPU that only waits in a
    collective.
    """

    source: Literal["cpu", "nvml"] = "nvml"

    def __init__(self) -> None:
        import pynvml  # loads the driver's library: only where there may be one

        nvml: Any = pynvml
        self._nvml = nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        if not self._handles:
            raise OSError("no NVIDIA device")

    def device_name(self) -> str | None:
        """See `UtilizationProbe`."""
        return str(self._nvml.nvmlDeviceGetName(self._handles[0]))

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """See `UtilizationProbe`."""
        uses = []
        for index, handle in enumerate(self._handles):
            try:
                rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError:
                continue  # not every device tells: one split into instances has no such rate
            kinds = {"used": int(memory.used), "total": int(memory.total)}
            uses.append(DeviceUse(index, rates.gpu / 100, kinds))
        return uses


class CpuProbe:
    """CPU seconds per second of each rank; a rank computes on one thread, so 1.0 is busy.

    A rate needs two reads: the first of a process only marks where its interval starts.
    """

    source: Literal["cpu", "nvml"] = "cpu"

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, float]] = {}

    def device_name(self) -> str | None:
        """See `UtilizationProbe`."""
        return None

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
    try:
        return NvmlProbe()
    except Exception:  # NVML raises its own errors by code; whatever it is, there is no GPU to read
        return CpuProbe()
