"""Network probe: time all-reduces of fixed size between two steps, without waiting for ranks.

The collectives of a step depend on the job, overlap with compute and wait for the slowest rank. The
probe is the same in every job. All ranks of a group synchronise first, and the shortest of their
durations counts: that rank arrived last and measured only the transfer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain_trainer.parallel.mesh import LABELS, Grid
from llmtrain_trainer.runtime.reports import ProbeSample

SIZES = (4 << 10, 16 << 20)
"""Payloads in bytes: one for latency, one for bandwidth."""


def probe_groups(grid: Grid, device: torch.device) -> tuple[ProbeSample, ...]:
    """Time one all-reduce of each size per group of this rank. Collective over all ranks."""
    return tuple(
        ProbeSample(LABELS[name], nbytes, group.size(), _seconds(group, nbytes, device))
        for name, group in sorted(grid.groups.items(), key=lambda item: LABELS[item[0]])
        for nbytes in SIZES
    )


def _seconds(group: dist.ProcessGroup, nbytes: int, device: torch.device) -> float:
    payload = torch.zeros(nbytes // 4, dtype=torch.float32, device=device)
    _timed(group, torch.zeros(1, device=device))  # a barrier
    seconds = torch.tensor(_timed(group, payload), dtype=torch.float64, device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MIN, group=group)
    return float(seconds)


def _timed(group: dist.ProcessGroup, payload: Tensor) -> float:
    synchronize: Callable[[], None] = torch.cuda.synchronize if payload.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    dist.all_reduce(payload, group=group)
    synchronize()
    return time.perf_counter() - start
