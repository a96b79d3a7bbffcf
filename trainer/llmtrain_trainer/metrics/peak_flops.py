"""Peak floating-point rate of the device, the denominator of model FLOPs utilisation."""

from __future__ import annotations

import time

import torch

from llmtrain_core.plan.hardware import accelerator_called

_GEMM = 384
_TRIALS = 8


def peak_flops(device_name: str | None) -> float:
    """Return the peak FLOP/s of one rank's device.

    A GPU's bfloat16 peak in the plan's catalogue, also where training is in float32: utilisation
    then says what is left on the table. 0 for a GPU that is not there. Without one (None): one
    core's measured rate of float32 matrix products, since a rank computes on one thread; where
    ranks share cores they share that peak too, and the ratio cannot reach one.
    """
    if device_name is None:
        return _measured_gemm()
    row = accelerator_called(device_name)
    return 0.0 if row is None else row.peak("bfloat16")


def _measured_gemm() -> float:
    """Time a product of squares, best of a few: other processes can only make it slower."""
    a = torch.rand(_GEMM, _GEMM)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _GEMM**3 / best
