"""What a machine without GPUs can do: `python -m llmtrain_trainer.calibration -o FILE`.

The trainer itself takes steps of small models on one rank and on two, with each kind of parallelism
by itself, and gloo runs collectives among up to eight ranks. From their CPU times the plan's prices
are fitted (`llmtrain_core.plan.cpu.cost_model`). No model or layout of more ranks is measured:
those are what the prices predict. CPU time, not wall time, which others on the same cores stretch.
All cores are kept busy while steps are measured, because cores share caches, clock and execution
units, and a job with more ranks than cores keeps them busy too.

How fast a machine is changes by the second (clock, neighbours on the host). So everything is built
first and then sampled in turns, until the samples of each agree or a minute of it is over; samples
are compared at one pace, and the prices are those of the mean pace of that minute.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import torch
import torch.distributed as dist

from llmtrain_core.layout import Layout
from llmtrain_core.plan.cpu.cost_model import (
    CpuCostModel,
    Measurement,
    WorkAmounts,
    collective_work,
    fit,
)
from llmtrain_core.plan.network.communication import Operation
from llmtrain_trainer.calibration.bench_group import Stopwatch, Task
from llmtrain_trainer.calibration.probe_model import Probe, random_tokens, step_watch
from llmtrain_trainer.data.prepare import PreparedData

LEAST_ROUNDS, MOST_ROUNDS = 7, 30
"""In a round every probe is sampled once."""
SECONDS = 60
"""When to stop, agreed or not."""
AGREED = 0.03
"""Standard error of a mean, relative, with which samples count as agreed."""


def _tiny(layers: int, layout: Layout, micro_batches: int) -> Probe:
    """Hardly any arithmetic: what remains is dispatch."""
    return Probe(layers, 32, 320, 16, layout, micro_batches)


ONE, DATA, TENSOR, PIPELINE = Layout(), Layout(data=2), Layout(tensor=2), Layout(pipeline=2)
ALONE = (
    *(_tiny(layers, ONE, m) for layers in (1, 6) for m in (1, 6)),
    Probe(2, 256, 320, 128, ONE, 2, micro_batch=2),  # wide products
    Probe(2, 96, 320, 128, ONE, 2, micro_batch=4),  # narrow ones
    Probe(2, 64, 320, 512, ONE, 2),  # attention
    Probe(1, 32, 6144, 64, ONE, 2, micro_batch=4),  # loss
    Probe(1, 384, 2048, 16, ONE, 1),  # weights
    Probe(1, 384, 2048, 16, ONE, 6),  # their gradients
)
PAIRS = (
    *(_tiny(layers, DATA, m) for layers in (1, 4) for m in (1, 4)),
    Probe(1, 384, 2048, 16, DATA, 1),
    *(_tiny(layers, TENSOR, m) for layers in (1, 3) for m in (1, 3)),
    Probe(2, 160, 1024, 96, TENSOR, 1, micro_batch=4),
    Probe(1, 32, 6144, 64, TENSOR, 2, micro_batch=4),
    *(_tiny(layers, PIPELINE, m) for layers in (2, 6) for m in (2, 4)),
    Probe(2, 256, 2048, 64, PIPELINE, 2, micro_batch=2),
)
"""Every kind of parallelism by itself, in the sizes that tell its kinds of work apart."""

OPERATIONS: tuple[Operation, ...] = ("all_gather", "reduce_scatter", "all_reduce")
COLLECTIVES = tuple(
    (operation, nbytes) for operation in OPERATIONS for nbytes in (1024, 512 * 1024)
)
GROUP_SIZES = (2, 4, 8)
CALLS = 4
"""Collectives of one sample."""


class Calibration:
    """A machine being measured, round by round."""

    def __init__(self, data: PreparedData) -> None:
        self.rounds, self.seconds = 0, 0.0
        self._cores = len(os.sched_getaffinity(0))
        self._works: list[Sequence[WorkAmounts]] = []
        self._watches: list[Stopwatch] = []
        with ExitStack() as stack:
            for probes in (ALONE, PAIRS):
                self._watches.append(stack.enter_context(step_watch(probes, data, self._cores)))
                self._works.append([probe.work for probe in probes])
            for size in GROUP_SIZES:
                self._watches.append(stack.enter_context(Stopwatch(size, _collectives)))
                self._works.append(_collective_works(size))
            self._running = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def settled(self) -> bool:
        """Whether the samples agree, or time is up. What they are fitted to plays no part."""
        if self.rounds < LEAST_ROUNDS:
            return False
        agreed = self.uncertainty <= AGREED
        return agreed or self.rounds >= MOST_ROUNDS or self.seconds >= SECONDS

    @property
    def uncertainty(self) -> float:
        """The largest relative standard error of what was measured."""
        return max(watch.uncertainty() for watch in self._watches)

    def round(self) -> None:
        """Sample everything once more."""
        start = time.perf_counter()
        for watch in self._watches:
            watch.round()
        self.rounds += 1
        self.seconds += time.perf_counter() - start

    @property
    def pace(self) -> float:
        """The mean pace of this machine while it was measured."""
        return fmean(watch.pace for watch in self._watches)

    def cost_model(self) -> CpuCostModel:
        """Return the prices that explain the means, at the mean pace."""
        pace = self.pace
        found = [
            Measurement(work, seconds * pace)
            for watch, works in zip(self._watches, self._works, strict=True)
            for work, seconds in zip(works, watch.cpu, strict=True)
        ]
        return fit(found, self._cores)


def _collective_works(size: int) -> list[WorkAmounts]:
    """Return the work of all ranks in each task of `_collectives`."""
    calls = CALLS * size
    return [
        collective_work(operation, size, calls, calls * nbytes) for operation, nbytes in COLLECTIVES
    ]


def _collectives() -> list[Task]:
    """Return the calls of every row of `COLLECTIVES`."""
    return [partial(_call, operation, nbytes) for operation, nbytes in COLLECTIVES]


def _call(operation: Operation, nbytes: int) -> None:
    size = dist.get_world_size()
    part = torch.zeros(nbytes // 4 // size)
    whole = torch.zeros(part.numel() * size)
    call: dict[Operation, Callable[[], Any]] = {
        "all_gather": partial(dist.all_gather_single, whole, part),
        "reduce_scatter": partial(dist.reduce_scatter_single, part, whole),
        "all_reduce": partial(dist.all_reduce, whole),
    }
    for _ in range(CALLS):
        call[operation]()


def main() -> None:
    """Calibrate this machine and write the file that a plan reads."""
    parser = argparse.ArgumentParser(description="measure what a step costs on this machine's CPU")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    output = parser.parse_args().output
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Calibration(random_tokens(Path(folder))) as calibration,
    ):
        while not calibration.settled:
            calibration.round()
        cost_model = calibration.cost_model()
    output.write_text(json.dumps(cost_model.to_wire(), indent=2) + "\n")
