"""What a machine without GPUs can do: `python -m llmtrain_trainer.calibrate -o FILE`.

The trainer itself takes steps of small models on one rank and on two, with each kind of parallelism
by itself, and gloo runs collectives among up to eight ranks. From their CPU times the plan's prices
are fitted (`llmtrain_core.plan.processor`). No model or layout of more ranks is measured: those are
what the prices predict. CPU time, not wall time: it depends little on what else runs. All cores
are kept busy while steps are measured, because cores share caches, clock and execution units, and a
job with more ranks than cores keeps them busy too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmtrain_core.api.job import Architecture
from llmtrain_core.layout import Layout
from llmtrain_core.plan.communication import Operation
from llmtrain_core.plan.processor import (
    Measurement,
    Processor,
    added,
    collective_work,
    fit,
    rank_work,
)
from llmtrain_core.plan.recipe import Recipe
from llmtrain_core.plan.shapes import shape_of
from llmtrain_trainer.config import RunConfig, from_spec
from llmtrain_trainer.data.prepare import HELD_OUT, TRAIN, PreparedData
from llmtrain_trainer.data.shards import write_shards
from llmtrain_trainer.parallel.workarounds import renew_thread_pool
from llmtrain_trainer.rendezvous import join, leave
from llmtrain_trainer.train import Trainer

LOOPBACK = "127.0.0.1"
PATIENCE = timedelta(seconds=300)
STEPS, CALLS = 2, 96
"""Steps, and collectives of all ranks together, of one sample."""
ROUNDS = 3
"""Every probe is sampled once a round, so that a burst of other load meets all of them alike."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one step took."""

    cpu: float
    """CPU seconds of all ranks together."""
    wall: float
    """Seconds, other load included."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A model and layout whose steps are measured."""

    layers: int
    hidden: int
    vocab: int
    length: int
    layout: Layout
    micro_batches: int
    micro_batch: int = 1

    @property
    def architecture(self) -> Architecture:
        """A decoder of four heads to two keys and values, in the proportions of Llama."""
        return Architecture(
            layers=self.layers, hidden_size=self.hidden, heads=4, kv_heads=2,
            ffn_size=self.hidden * 11 // 4, vocab_size=self.vocab, sequence_length=self.length,
        )  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """The probe as the plan sees it."""
        batch = self.micro_batches * self.micro_batch * self.layout.data
        return Recipe(
            shape_of(self.architecture), self.layout, batch, self.micro_batch, precision="float32"
        )

    @property
    def run(self) -> RunConfig:
        """The probe as the trainer sees it."""
        recipe, layout = self.recipe, self.layout
        wire = self.architecture.model_dump(by_alias=True, exclude_none=True)
        return from_spec(
            "calibration",
            {
                "model": {"architecture": wire},
                "data": {"sources": [{"name": "none", "uri": "file:///none"}]},
                "training": {
                    "steps": 1000, "globalBatchSize": recipe.global_batch,
                    "microBatchSize": recipe.micro_batch, "precision": recipe.precision,
                },
                "parallelism": {
                    "tensor": layout.tensor, "pipeline": layout.pipeline, "data": layout.data,
                    "pipelineSchedule": "1F1B",
                },
                "workers": {"gpusPerNode": layout.world_size, "image": "none"},
            },
        )  # fmt: skip

    def measurement(self, samples: Iterable[Sample]) -> Measurement:
        """Return the work of all ranks and what it took."""
        per_stage = self.layout.world_size // self.layout.pipeline
        stages = [rank_work(self.recipe, rank) for rank in range(self.layout.pipeline)]
        work = {kind: per_stage * amount for kind, amount in added(*stages).items()}
        return Measurement(work, median(sample.cpu for sample in samples))


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
    *(_tiny(layers, DATA, m) for layers in (1, 6) for m in (1, 4)),
    Probe(1, 384, 2048, 16, DATA, 1),
    *(_tiny(layers, TENSOR, m) for layers in (1, 4) for m in (1, 4)),
    Probe(2, 160, 1024, 96, TENSOR, 1, micro_batch=4),
    Probe(1, 32, 6144, 64, TENSOR, 2, micro_batch=4),
    *(_tiny(layers, PIPELINE, m) for layers in (2, 6) for m in (2, 6)),
    Probe(2, 384, 2048, 64, PIPELINE, 2, micro_batch=2),
)
"""Every kind of parallelism by itself, in the sizes that tell its kinds of work apart."""

OPERATIONS: tuple[Operation, ...] = ("all_gather", "reduce_scatter", "all_reduce")
COLLECTIVES = tuple(
    (operation, nbytes) for operation in OPERATIONS for nbytes in (1024, 64 * 1024, 1024 * 1024)
)
GROUP_SIZES = (2, 4, 8)


def calibrate(folder: Path, rounds: int = ROUNDS) -> Processor:
    """Measure this machine; shards of random tokens are written to `folder`."""
    return fitted([sample_round(folder) for _ in range(rounds)])


@dataclass(frozen=True, slots=True)
class Round:
    """One sample of everything."""

    steps: dict[Probe, Sample]
    collectives: dict[tuple[int, Operation, int], float]


def sample_round(folder: Path) -> Round:
    """Sample every probe once."""
    cores = len(os.sched_getaffinity(0))
    steps = {
        **sample_steps(ALONE, folder, copies=cores),
        **sample_steps(PAIRS, folder, copies=cores),
    }
    collectives = {
        (size, *which): seconds
        for size in GROUP_SIZES
        for which, seconds in zip(COLLECTIVES, _run(size, _time_collectives), strict=True)
    }
    return Round(steps, collectives)


def fitted(rounds: Sequence[Round]) -> Processor:
    """Return the prices that explain the medians of some rounds."""
    found = [probe.measurement(one.steps[probe] for one in rounds) for probe in rounds[0].steps]
    for size, operation, nbytes in rounds[0].collectives:
        seconds = median(one.collectives[size, operation, nbytes] for one in rounds)
        work = collective_work(operation, size, size, size * nbytes)
        found.append(Measurement(work, seconds))
    return fit(found, len(os.sched_getaffinity(0)))


def sample_steps(probes: Sequence[Probe], folder: Path, copies: int = 1) -> dict[Probe, Sample]:
    """Return a sample of each probe; all need as many ranks.

    With `copies`, so many jobs do the same beside each other; what is returned is one's mean.
    """
    sizes = {probe.layout.world_size for probe in probes}
    (size,) = sizes
    data = _random_tokens(folder, max(probe.vocab for probe in probes))

    def body(_: int) -> list[float]:
        return [seconds for probe in probes for seconds in _time_steps(probe.run, data)]

    sums = _run(size, body, copies)
    return {
        probe: Sample(cpu, wall / size)
        for probe, cpu, wall in zip(probes, sums[::2], sums[1::2], strict=True)
    }


def _time_steps(run: RunConfig, data: PreparedData) -> tuple[float, float]:
    """Return CPU and wall seconds of a step on this rank."""
    trainer = Trainer(run, data, torch.device("cpu"), lambda _: None)
    trainer.take_step()  # connects and plans
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        trainer.take_step()
    return (time.process_time() - cpu) / STEPS, (time.perf_counter() - wall) / STEPS


def _time_collectives(_: int) -> list[float]:
    """Return CPU seconds per call of every row of `COLLECTIVES`, on this rank."""
    size = dist.get_world_size()
    calls = CALLS // size
    found = []
    for operation, nbytes in COLLECTIVES:
        part = torch.zeros(nbytes // 4 // size)
        whole = torch.zeros(part.numel() * size)
        call: dict[Operation, Callable[[], Any]] = {
            "all_gather": partial(dist.all_gather_single, whole, part),
            "reduce_scatter": partial(dist.reduce_scatter_single, part, whole),
            "all_reduce": partial(dist.all_reduce, whole),
        }
        call[operation]()
        start = time.process_time()
        for _ in range(calls):
            call[operation]()
        found.append((time.process_time() - start) / calls)
    return found


def _random_tokens(folder: Path, vocab: int) -> PreparedData:
    random, count = np.random.default_rng(0), 50_000
    tokens = random.integers(0, 256, count).astype(np.uint32)
    for split in (TRAIN, HELD_OUT):
        write_shards(folder, split, [tokens], vocab)
    return PreparedData(folder, count, count, "random")


def _run(size: int, body: Callable[[int], list[float]], copies: int = 1) -> list[float]:
    """Fork `size` ranks in one process group; return the sums over ranks of what `body` returns.

    `copies`: so many such groups at once; the mean of their sums.
    """
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=_enter, args=(rank, size, port, body, queue), daemon=True)
        for port in [_free_port() for _ in range(copies)]
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    answers: list[list[float]] = []
    try:
        for _ in ranks:
            answers.append(_checked(queue.get(timeout=PATIENCE.total_seconds())))
    finally:
        for process in ranks:
            process.join(5 if len(answers) == len(ranks) else 0)
            process.kill()
    return [sum(values) / copies for values in zip(*answers, strict=True)]


def _checked(answer: list[float] | str) -> list[float]:
    if isinstance(answer, str):
        raise RuntimeError(f"a rank failed: {answer}")
    return answer


def _enter(rank: int, size: int, port: int, body: Callable[[int], list[float]], queue: Any) -> None:
    """Run in a forked rank: join, measure, answer."""
    renew_thread_pool()
    try:
        store = join(rank, size, LOOPBACK, (LOOPBACK, port), PATIENCE)
        queue.put(body(rank))
        leave(store, rank, size, PATIENCE)
    except Exception:  # the border of the process: the parent raises it
        queue.put(traceback.format_exc())
    queue.close()
    queue.join_thread()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Calibrate this machine and write the file that a plan reads."""
    parser = argparse.ArgumentParser(description="measure what a step costs on this machine's CPU")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    output = parser.parse_args().output
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        processor = calibrate(Path(folder))
    output.write_text(json.dumps(processor.to_wire(), indent=2) + "\n")


if __name__ == "__main__":
    main()
