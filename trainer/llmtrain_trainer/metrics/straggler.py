"""Waiting told apart from transfer, and who is waited for.

A collective lasts from a rank's own arrival to the end, which is the same for all; so whoever came
last measured the transfer alone, and the others waited for as long as they measured more. No clock
is compared with another machine's. What is left of a step without waiting is a rank's own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.distributed as dist

from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime.reports import CollectiveSample

_SAME_WORK = ("tp", "dp", "rep")
"""Groups that together hold all ranks of a pipeline stage, which do the same work."""


@dataclass(frozen=True, slots=True)
class Skew:
    """A sampled step of one rank, with waiting told apart."""

    collectives: tuple[CollectiveSample, ...]
    score: float
    """Pace of this rank over that of the fastest with the same work: 1 for the fastest, 0.5 for one
    that takes twice as long."""


def measure_skew(
    collectives: Sequence[CollectiveSample], seconds: float, grid: Grid, device: torch.device
) -> Skew:
    """Compare a step of `seconds` with the other ranks'. Collective over all groups of the grid."""
    told = [
        sample for name in sorted(grid.groups) for sample in _waits(collectives, name, grid, device)
    ]
    others = [sample for sample in collectives if sample.group not in grid.groups]
    busy = seconds - sum(sum(sample.waits) for sample in told)
    fastest = torch.tensor(busy, dtype=torch.float64, device=device)
    for name in _SAME_WORK:
        if name in grid.groups:
            dist.all_reduce(fastest, dist.ReduceOp.MIN, group=grid.groups[name])
    return Skew((*told, *others), float(fastest) / busy)


def _waits(
    collectives: Sequence[CollectiveSample], name: str, grid: Grid, device: torch.device
) -> list[CollectiveSample]:
    """Return the samples of one group, whose ranks made the same calls, with their waits."""
    mine = [sample for sample in collectives if sample.group == name]
    lasted = [seconds for sample in mine for seconds in sample.seconds]
    if not lasted:
        return mine
    own = torch.tensor(lasted, dtype=torch.float64, device=device)
    transfer = own.clone()
    dist.all_reduce(transfer, dist.ReduceOp.MIN, group=grid.groups[name])
    waits = iter((own - transfer).tolist())
    return [replace(sample, waits=tuple(islice(waits, len(sample.seconds)))) for sample in mine]
