"""Peak FLOP/s of a device: the denominator of the model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time

import torch

from llmtrain_core.plan.hardware import accelerator_called

_GEMM = 384
_TRIALS = 8


def peak_flops(device_name: str | None) -> float:
    """Return the peak FLOP/s of one rank's device.

    For a GPU this is its bfloat16 peak in the plan's catalogue, even if training uses float32; 0
    for a GPU that the catalogue does not have. Without a GPU (None) it is the measured rate of
    float32 matrix products on one core, because a rank computes on one thread. Ranks that share
    cores share that peak too, so their ratio cannot reach one.
    """
    if device_name is None:
        return _measured_gemm()
    row = accelerator_called(device_name)
    return 0.0 if row is None else row.peak("bfloat16")


def _measured_gemm() -> float:
    """Return the best rate of a few square products: other load can only make them slower."""
    a = torch.rand(_GEMM, _GEMM)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _GEMM**3 / best
