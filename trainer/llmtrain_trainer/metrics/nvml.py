"""NVIDIA's management library: the only file that knows its calls.

`utilization.gpu` is the share of time in which any kernel ran: 1.0 also for a GPU that only waits
in a collective. Hopper and later tell more (GPM, the figures of DCGM's profiling fields): how many
multiprocessors had work, how busy the matrix units and the memory were between two reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from llmtrain_trainer.metrics.gpu_use import DeviceName, DeviceUse

_UNITS = (
    ("sm", "NVML_GPM_METRIC_SM_UTIL"),
    ("tensor", "NVML_GPM_METRIC_ANY_TENSOR_UTIL"),
    ("dram", "NVML_GPM_METRIC_DRAM_BW_UTIL"),
)
"""Our names of units (DCGM_FI_PROF_SM_ACTIVE, PIPE_TENSOR_ACTIVE, DRAM_ACTIVE), all in percent."""


class NvmlProbe:
    """All devices that the driver shows to this pod. Raises where there is no library or device."""

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
        self._samples = [self._first_sample(handle) for handle in self._handles]

    def names(self) -> list[DeviceName]:
        """See `UtilizationProbe`."""
        nvml = self._nvml
        return [
            DeviceName(str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle)))
            for handle in self._handles
        ]

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """See `UtilizationProbe`; a device split into instances (MIG) tells nothing."""
        uses = []
        for index, handle in enumerate(self._handles):
            rates = self._told(self._nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._told(self._nvml.nvmlDeviceGetMemoryInfo, handle)
            if rates is None or memory is None:
                continue
            millijoules = self._told(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            uses.append(
                DeviceUse(
                    gpu=index,
                    ratio=rates.gpu / 100,
                    memory={"used": int(memory.used), "total": int(memory.total)},
                    activity=self._activity(index),
                    joules=None if millijoules is None else millijoules / 1000,
                )
            )
        return uses

    def _told(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return the answer, None where this device or driver has none."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None

    def _first_sample(self, handle: Any) -> Any:
        """Return a sample of the device's counters, None where it has none (before Hopper)."""
        support = self._told(self._nvml.nvmlGpmQueryDeviceSupport, handle)
        if support is None or not support.isSupportedDevice:
            return None
        return self._told(lambda: self._sample(handle))

    def _sample(self, handle: Any) -> Any:
        return self._nvml.nvmlGpmSampleGet(handle, self._nvml.nvmlGpmSampleAlloc())

    def _activity(self, index: int) -> dict[str, float]:
        """Return what the counters moved by since the last read."""
        before = self._samples[index]
        if before is None:
            return {}
        now = self._told(lambda: self._sample(self._handles[index]))
        if now is None:
            return {}
        self._samples[index] = now
        nvml = self._nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(_UNITS)
        asked.sample1, asked.sample2 = before, now
        for place, (_, metric) in enumerate(_UNITS):
            asked.metrics[place].metricId = getattr(nvml, metric)
        found = self._told(nvml.nvmlGpmMetricsGet, asked)
        nvml.nvmlGpmSampleFree(before)
        if found is None:
            return {}
        return {
            unit: found.metrics[place].value / 100
            for place, (unit, _) in enumerate(_UNITS)
            if found.metrics[place].nvmlReturn == nvml.NVML_SUCCESS
        }
