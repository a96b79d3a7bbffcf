"""Read devices through NVIDIA's management library (NVML); no other file calls it.

`utilization.gpu` is the share of time in which any kernel ran: it is 1.0 also for a GPU that only
waits in a collective. Hopper and later have finer counters (GPM, the source of DCGM's profiling
fields): the use of multiprocessors, matrix units and memory between two reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from llmtrain_core.node_health.xid import FALLEN_OFF, Xid
from llmtrain_trainer.metrics.devices import DeviceName, DeviceUse

_MOST_EVENTS = 1000
"""Events of one read."""
_UNITS = (
    ("sm", "NVML_GPM_METRIC_SM_UTIL"),
    ("tensor", "NVML_GPM_METRIC_ANY_TENSOR_UTIL"),
    ("dram", "NVML_GPM_METRIC_DRAM_BW_UTIL"),
)
"""Label of a unit and its metric, in percent. DCGM_FI_PROF_SM_ACTIVE, PIPE_TENSOR_ACTIVE and
DRAM_ACTIVE are the same figures."""


class NvmlMonitor:
    """Monitors all devices visible to this pod. Raises if there is no library or no device."""

    source: Literal["cpu", "nvml"] = "nvml"

    def __init__(self) -> None:
        import pynvml  # here, because it loads the driver's library

        nvml: Any = pynvml
        self._nvml = nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        if not self._handles:
            raise OSError("no NVIDIA device")
        self._samples = [self._first_sample(handle) for handle in self._handles]
        self._events = self._query(self._register_xids)

    def names(self) -> list[DeviceName]:
        """See `DeviceMonitor`."""
        nvml = self._nvml
        return [
            DeviceName(str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle)))
            for handle in self._handles
        ]

    def xids(self) -> list[Xid]:
        """See `DeviceMonitor`. A device that NVML calls lost has fallen off the bus."""
        nvml, found = self._nvml, list[Xid]()
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:  # a timeout if there is no event
                if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
                    found.append(Xid(FALLEN_OFF))
                    self._events = None
                break
            if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                found.append(Xid(int(event.eventData)))
        return found

    def _register_xids(self) -> Any:
        """Return a set of the events of all devices. Raises if a device has none, as on vGPUs."""
        nvml = self._nvml
        events = nvml.nvmlEventSetCreate()
        for handle in self._handles:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def read(self, pids: list[int]) -> list[DeviceUse]:
        """See `DeviceMonitor`. A device that is split into instances (MIG) has no figures."""
        uses = []
        for index, handle in enumerate(self._handles):
            rates = self._query(self._nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._query(self._nvml.nvmlDeviceGetMemoryInfo, handle)
            if rates is None or memory is None:
                continue
            millijoules = self._query(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
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

    def _query(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a call; None if this device or driver does not support it."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None

    def _first_sample(self, handle: Any) -> Any:
        """Return a sample of the device's counters; None if it has none (before Hopper)."""
        support = self._query(self._nvml.nvmlGpmQueryDeviceSupport, handle)
        if support is None or not support.isSupportedDevice:
            return None
        return self._query(lambda: self._sample(handle))

    def _sample(self, handle: Any) -> Any:
        return self._nvml.nvmlGpmSampleGet(handle, self._nvml.nvmlGpmSampleAlloc())

    def _activity(self, index: int) -> dict[str, float]:
        """Return the activity of each unit since the last read."""
        before = self._samples[index]
        if before is None:
            return {}
        now = self._query(lambda: self._sample(self._handles[index]))
        if now is None:
            return {}
        self._samples[index] = now
        nvml = self._nvml
        request = nvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(_UNITS)
        request.sample1, request.sample2 = before, now
        for position, (_, metric) in enumerate(_UNITS):
            request.metrics[position].metricId = getattr(nvml, metric)
        result = self._query(nvml.nvmlGpmMetricsGet, request)
        nvml.nvmlGpmSampleFree(before)
        if result is None:
            return {}
        return {
            unit: result.metrics[position].value / 100
            for position, (unit, _) in enumerate(_UNITS)
            if result.metrics[position].nvmlReturn == nvml.NVML_SUCCESS
        }
