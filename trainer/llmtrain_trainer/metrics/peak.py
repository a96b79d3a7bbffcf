"""Peak floating-point rate of the device, the denominator of model FLOPs utilisation."""

from __future__ import annotations

import time

import torch

_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB300", 2500e12), ("GB200", 2500e12), ("B300", 2250e12), ("B200", 2250e12),
    ("H200", 989e12), ("H100 NVL", 835e12), ("H100 PCIE", 756e12), ("H100", 989e12),
    ("A100", 312e12), ("L40S", 362e12),
)  # fmt: skip
"""Dense bfloat16 FLOP/s by part of the device's name (vendors' data sheets); first match."""

_GEMM = 384
_TRIALS = 8


def peak_flops(device_name: str | None) -> float:
    """Return the peak FLOP/s of one rank's device.

    A GPU's bfloat16 peak, also where training is in float32: utilisation then says what is left on
    the table. 0 for an unknown GPU. Without a GPU (None): one core's measured rate of float32
    matrix products, since a rank computes on one thread; where ranks share cores they share that
    peak too, and the ratio cannot reach one.
    """
    if device_name is None:
        return _measured_gemm()
    name = device_name.upper()
    return next((peak for part, peak in _PEAKS if part in name), 0.0)


def _measured_gemm() -> float:
    """Time a product of squares, best of a few: other processes can only make it slower."""
    a = torch.rand(_GEMM, _GEMM)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _GEMM**3 / best
