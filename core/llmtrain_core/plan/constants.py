"""Fitted constants of the step model, one set per GPU type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmtrain_core.plan.training_setup import Precision


@dataclass(frozen=True, slots=True)
class Constants:
    """Efficiencies and overheads of a GPU type in training."""

    product_efficiency: float
    """Share of the 16-bit peak in large products."""
    float8_efficiency: float
    """Share of the 8-bit peak in large products."""
    kernel_seconds: float
    """Fixed cost of one product: launch, first and last wave."""
    attention_efficiency: float
    """Share of the 16-bit peak in fused causal attention, counted without the masked half."""
    tensor_exposed: float
    """Exposed share of overlapped tensor-parallel traffic."""
    jitter: float
    """Slowdown per doubling of the number of nodes, because the slowest node sets the pace."""
    memory_efficiency: float = 0.8
    """Share of the memory bandwidth that streaming kernels reach."""
    link_efficiency: float = 0.8
    """Share of the NVLink rate that rings reach: 370 of 450 GB/s on eight H100 (nccl-tests)."""
    nic_efficiency: float = 0.85
    """Share of the NIC rate that rings reach across servers."""

    def efficiency(self, precision: Precision) -> float:
        """Return the share of the peak of `precision` that large products reach."""
        return self.float8_efficiency if precision == "float8" else self.product_efficiency


INITIAL = Constants(
    product_efficiency=0.72,
    float8_efficiency=0.55,
    kernel_seconds=15e-6,
    attention_efficiency=0.45,
    tensor_exposed=0.4,
    jitter=0.003,
)
"""Initial values for fitting: rounded figures of large products and flash attention on H100."""

CONSTANTS: Mapping[str, Constants] = MappingProxyType(
    {
        "A100": Constants(0.7574, 0.55, 5.672e-05, 0.3734, 0.4, 0.006281),
        "H100": Constants(0.6875, 0.55, 5.672e-05, 0.5484, 0.4625, 0.0105),
        "H100-500W": Constants(0.4945, 0.4789, 5.672e-05, 0.5484, 0.4625, 0.0105),
        "H200": Constants(0.6875, 0.4078, 5.672e-05, 0.5484, 0.4625, 0.0105),
        "B200": Constants(0.5402, 0.5007, 5.672e-05, 0.5484, 0.4625, 0.0105),
        "GB200": Constants(0.5402, 0.5609, 5.672e-05, 0.5484, 0.4625, 0.0105),
        "GB300": Constants(0.5402, 0.7031, 5.672e-05, 0.5484, 0.4625, 0.0105),
    }
)
"""Fitted by `calibration.fit_all` to half of `published_runs()`; a test repeats the fit."""

FALLBACK_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "A100-80": "A100",
        "A100-40": "A100",
        "A100-PCIe-80": "A100",
        "A100-PCIe-40": "A100",
        "V100": "A100",
        "V100-16": "A100",
        "V100-PCIe-32": "A100",
        "V100-PCIe-16": "A100",
        "MI300X": "A100",
        "H100-PCIe": "H100",
        "H100-NVL": "H100",
        "H100-500W": "H100",
        "H200": "H100",
        "H200-NVL": "H200",
        "GB200": "H100",
        "B200": "GB200",
        "GB300": "GB200",
    }
)
"""Type whose constants are used for a type with no or too few published runs."""


MEMORY_VARIANTS = frozenset({"A100-80", "A100-40"})
"""Rows that differ only in memory and share published runs."""


def constants_of(hardware: str) -> Constants:
    """Return the constants for a row of the catalogue."""
    return CONSTANTS[calibrated_type_of(hardware)]


def calibrated_type_of(hardware: str) -> str:
    """Return the type whose published runs the constants of a row were fitted to."""
    while hardware not in CONSTANTS:
        hardware = FALLBACK_TYPES[hardware]
    return hardware


def fitted_type_of(hardware: str) -> str:
    """Return the type whose constants a row is fitted under: memory sizes share one."""
    return FALLBACK_TYPES[hardware] if hardware in MEMORY_VARIANTS else hardware
