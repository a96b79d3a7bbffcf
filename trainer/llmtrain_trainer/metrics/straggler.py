"""Separate waiting from transfer in collectives, and find the ranks that others wait for.

A collective takes from a rank's own arrival to the end, which is the same for all ranks. So the
last rank to arrive measures only the transfer, and the excess of the others is their waiting time.
No clocks of different machines are compared. A step without its waiting is the rank's own work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.distributed as dist

from llmtrain_trainer.parallel.mesh import LABELS, Grid
from llmtrain_trainer.runtime.reports import CollectiveSample

_SAME_WORK = ("tp", "fsdp", "dp_replicate")
"""Groups that together contain all ranks of a pipeline stage, which do the same work."""


@dataclass(frozen=True, slots=True)
class Skew:
    """The collectives of a sampled step of one rank, with waiting times, and its score."""

    collectives: tuple[CollectiveSample, ...]
    score: float
    """Speed relative to the fastest rank with the same work: 1 for the fastest, 0.5 for one that
    takes twice as long."""


def measure_skew(
    collectives: Sequence[CollectiveSample], seconds: float, grid: Grid, device: torch.device
) -> Skew:
    """Compare a step of `seconds` with other ranks. Collective over all groups of the grid."""
    with_waits = [
        sample
        for name in sorted(grid.groups, key=LABELS.__getitem__)
        for sample in _waits(collectives, name, grid, device)
    ]
    labels = {LABELS[name] for name in grid.groups}
    others = [sample for sample in collectives if sample.group not in labels]
    busy = seconds - sum(sum(sample.waits) for sample in with_waits)
    fastest = torch.tensor(busy, dtype=torch.float64, device=device)
    for name in _SAME_WORK:
        if name in grid.groups:
            dist.all_reduce(fastest, dist.ReduceOp.MIN, group=grid.groups[name])
    return Skew((*with_waits, *others), float(fastest) / busy)


def _waits(
    collectives: Sequence[CollectiveSample], name: str, grid: Grid, device: torch.device
) -> list[CollectiveSample]:
    """Return the samples of one group with waiting times; all its ranks made the same calls."""
    mine = [sample for sample in collectives if sample.group == LABELS[name]]
    durations = [seconds for sample in mine for seconds in sample.seconds]
    if not durations:
        return mine
    own = torch.tensor(durations, dtype=torch.float64, device=device)
    transfer = own.clone()
    dist.all_reduce(transfer, dist.ReduceOp.MIN, group=grid.groups[name])
    waits = iter((own - transfer).tolist())
    return [replace(sample, waits=tuple(islice(waits, len(sample.seconds)))) for sample in mine]
