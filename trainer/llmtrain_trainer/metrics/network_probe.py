"""All-reduces of fixed size between two steps: what the network takes when nobody is waited for.

The collectives of a step are as many and as large as the job makes them, they overlap with compute
and they wait for the slowest rank. These are the same in every job. All ranks of a group meet
first, and of what they measured the least counts: that rank came last and saw the transfer alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime.reports import ProbeSample

SIZES = (4 << 10, 16 << 20)
"""Bytes: one for latency, one for bandwidth."""


def probe_groups(grid: Grid, device: torch.device) -> tuple[ProbeSample, ...]:
    """Time one all-reduce of each size per group of this rank. Collective over all ranks."""
    return tuple(
        ProbeSample(name, nbytes, group.size(), _seconds(group, nbytes, device))
        for name, group in sorted(grid.groups.items())
        for nbytes in SIZES
    )


def _seconds(group: dist.ProcessGroup, nbytes: int, device: torch.device) -> float:
    payload = torch.zeros(nbytes // 4, dtype=torch.float32, device=device)
    _timed(group, torch.zeros(1, device=device))  # all are here
    lasted = torch.tensor(_timed(group, payload), dtype=torch.float64, device=device)
    dist.all_reduce(lasted, dist.ReduceOp.MIN, group=group)
    return float(lasted)


def _timed(group: dist.ProcessGroup, payload: Tensor) -> float:
    settle: Callable[[], None] = torch.cuda.synchronize if payload.is_cuda else lambda: None
    settle()
    start = time.perf_counter()
    dist.all_reduce(payload, group=group)
    settle()
    return time.perf_counter() - start
