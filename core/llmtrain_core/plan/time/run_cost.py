"""Energy and cost of a run."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.plan.hardware import Accelerator

SERVER_SHARE = 1.45
"""Power of a server over that of its GPUs: between the GPUs alone and the 1.82 that 10.2 kW at most
make of eight times 700 W (NVIDIA DGX H100 user guide); fans and CPUs stay below their maximum."""
FACILITY_SHARE = 1.25
"""Power usage effectiveness of a usual data centre: cooling and conversion."""
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class RunCost:
    """GPU hours, energy and price of a run."""

    gpu_hours: float
    kilowatt_hours: float
    dollars: float


def run_cost(
    hardware: Accelerator, gpus: int, seconds: float, price_per_gpu_hour: float | None = None
) -> RunCost:
    """Return the cost of `seconds` on `gpus`; the price is the catalogue's unless one is given."""
    hours = gpus * seconds / 3600
    joules = gpus * seconds * hardware.watts.value * SERVER_SHARE * FACILITY_SHARE
    price = hardware.price.value if price_per_gpu_hour is None else price_per_gpu_hour
    return RunCost(hours, joules / JOULES_PER_KWH, hours * price)
