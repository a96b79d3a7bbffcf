"""Calibrate the CPU cost model for a machine: `python -m llmtrain_trainer.calibration -o FILE`.

The trainer takes steps of small models on one rank and on two, with one kind of parallelism each,
and gloo runs collectives among up to eight ranks. The costs of the model are fitted to their CPU
times (`llmtrain_core.plan.cpu.cost_model`). Larger models and layouts with more ranks are not
measured: the cost model predicts them. CPU time is used because other processes on the same cores
increase wall time. All cores are kept busy while steps are measured, because cores share caches,
clock and execution units, and a job with more ranks than cores keeps them busy too.

The speed of a machine changes by the second (clock, other virtual machines on the host). So
everything is built first and then sampled in turns, until the samples of each task agree or a
minute has passed. Samples are scaled to a quiet core, and the costs are then scaled to the mean
slowdown of the measurement.
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
from llmtrain_trainer.calibration.bench_group import BenchmarkGroup, Task
from llmtrain_trainer.calibration.benchmark_model import (
    BenchmarkModel,
    benchmark_steps,
    random_tokens,
)
from llmtrain_trainer.data.prepare import PreparedData

MIN_ROUNDS, MAX_ROUNDS = 7, 30
"""In a round every task is sampled once."""
MAX_SECONDS = 60
"""When to stop even if the samples do not agree."""
MAX_ERROR = 0.03
"""Relative standard error of a mean up to which its samples agree."""


def _tiny(layers: int, layout: Layout, micro_batches: int) -> BenchmarkModel:
    """Return a model with so little arithmetic that a step is mostly dispatch."""
    return BenchmarkModel(layers, 32, 320, 16, layout, micro_batches)


ONE, DATA, TENSOR, PIPELINE = Layout(), Layout(data=2), Layout(tensor=2), Layout(pipeline=2)
SINGLE_RANK = (
    *(_tiny(layers, ONE, m) for layers in (1, 6) for m in (1, 6)),
    BenchmarkModel(2, 256, 320, 128, ONE, 2, micro_batch=2),  # wide products
    BenchmarkModel(2, 96, 320, 128, ONE, 2, micro_batch=4),  # narrow ones
    BenchmarkModel(2, 64, 320, 512, ONE, 2),  # attention
    BenchmarkModel(1, 32, 6144, 64, ONE, 2, micro_batch=4),  # loss
    BenchmarkModel(1, 384, 2048, 16, ONE, 1),  # weights
    BenchmarkModel(1, 384, 2048, 16, ONE, 6),  # their gradients
)
TWO_RANKS = (
    *(_tiny(layers, DATA, m) for layers in (1, 4) for m in (1, 4)),
    BenchmarkModel(1, 384, 2048, 16, DATA, 1),
    *(_tiny(layers, TENSOR, m) for layers in (1, 3) for m in (1, 3)),
    BenchmarkModel(2, 160, 1024, 96, TENSOR, 1, micro_batch=4),
    BenchmarkModel(1, 32, 6144, 64, TENSOR, 2, micro_batch=4),
    *(_tiny(layers, PIPELINE, m) for layers in (2, 6) for m in (2, 4)),
    BenchmarkModel(2, 256, 2048, 64, PIPELINE, 2, micro_batch=2),
)
"""One kind of parallelism each, in sizes that separate its kinds of work."""

OPERATIONS: tuple[Operation, ...] = ("all_gather", "reduce_scatter", "all_reduce")
COLLECTIVES = tuple(
    (operation, nbytes) for operation in OPERATIONS for nbytes in (1024, 512 * 1024)
)
GROUP_SIZES = (2, 4, 8)
CALLS = 4
"""Collectives in one sample."""


class Calibration:
    """Measures a machine, round by round."""

    def __init__(self, data: PreparedData) -> None:
        self.rounds, self.seconds = 0, 0.0
        self._cores = len(os.sched_getaffinity(0))
        self._works: list[Sequence[WorkAmounts]] = []
        self._groups: list[BenchmarkGroup] = []
        with ExitStack() as stack:
            for models in (SINGLE_RANK, TWO_RANKS):
                self._groups.append(stack.enter_context(benchmark_steps(models, data, self._cores)))
                self._works.append([model.work for model in models])
            for size in GROUP_SIZES:
                self._groups.append(stack.enter_context(BenchmarkGroup(size, _collectives)))
                self._works.append(_collective_works(size))
            self._running = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def is_done(self) -> bool:
        """Whether the samples agree or the time is over. The fit has no influence on it."""
        if self.rounds < MIN_ROUNDS:
            return False
        agreed = self.uncertainty <= MAX_ERROR
        return agreed or self.rounds >= MAX_ROUNDS or self.seconds >= MAX_SECONDS

    @property
    def uncertainty(self) -> float:
        """The largest relative standard error of all tasks."""
        return max(group.uncertainty() for group in self._groups)

    def sample_all(self) -> None:
        """Take one more sample of every task."""
        start = time.perf_counter()
        for group in self._groups:
            group.sample_all()
        self.rounds += 1
        self.seconds += time.perf_counter() - start

    @property
    def cpu_slowdown(self) -> float:
        """The mean slowdown of this machine while it was measured."""
        return fmean(group.cpu_slowdown for group in self._groups)

    def cost_model(self) -> CpuCostModel:
        """Return the costs that fit the means, at the mean slowdown."""
        slowdown = self.cpu_slowdown
        measurements = [
            Measurement(work, seconds * slowdown)
            for group, works in zip(self._groups, self._works, strict=True)
            for work, seconds in zip(works, group.cpu, strict=True)
        ]
        return fit(measurements, self._cores)


def _collective_works(size: int) -> list[WorkAmounts]:
    """Return the work of all ranks in each task of `_collectives`."""
    calls = CALLS * size
    return [
        collective_work(operation, size, calls, calls * nbytes) for operation, nbytes in COLLECTIVES
    ]


def _collectives() -> list[Task]:
    """Return a task for every row of `COLLECTIVES`."""
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
    """Calibrate this machine and write the file for `llmtrain plan`."""
    parser = argparse.ArgumentParser(description="measure what a step costs on this machine's CPU")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    output = parser.parse_args().output
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Calibration(random_tokens(Path(folder))) as calibration,
    ):
        while not calibration.is_done:
            calibration.sample_all()
        cost_model = calibration.cost_model()
    output.write_text(json.dumps(cost_model.to_wire(), indent=2) + "\n")
