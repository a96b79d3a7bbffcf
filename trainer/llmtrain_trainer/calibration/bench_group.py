"""Forked ranks that time benchmark tasks on demand, one task at a time.

Building a trainer takes longer than its steps. So everything is built once, and then the tasks are
sampled in turns, so that other load on the machine affects all of them alike. A rank sleeps while
it waits for its turn.

A core shares its execution units and its clock with other cores, some of them in other virtual
machines on the host. It does half as much in a CPU second while those are busy. So every rank also
times a reference workload before and after a task, and a sample includes the slowdown of the core.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from statistics import fmean, stdev
from typing import Any, Self

import torch
import torch.distributed as dist

from llmtrain_trainer.parallel.workarounds import renew_thread_pool
from llmtrain_trainer.runtime.child_process import die_with_parent
from llmtrain_trainer.worker.rendezvous import join

LOOPBACK = "127.0.0.1"
TIMEOUT = timedelta(seconds=300)
SAMPLE_SECONDS, MAX_REPEATS = 0.05, 8
"""A task is repeated until a sample takes about this long, and at most this often."""

REFERENCE_SECONDS = 0.004
"""CPU seconds of `reference_workload` on a quiet core."""

Task = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a task."""

    cpu: float
    """CPU seconds of all ranks together."""
    wall: float
    """Elapsed seconds, including the effect of other load."""
    cpu_slowdown: float
    """CPU seconds that the cores need for what takes one CPU second on a quiet core."""

    @property
    def quiet_cpu(self) -> float:
        """CPU seconds on a quiet core."""
        return self.cpu / self.cpu_slowdown


class BenchmarkGroup:
    """The ranks of one process group, or of several equal ones, and their tasks.

    `build` runs once on every rank and returns the same tasks on each. With `copies` process
    groups, all run the same task at the same time, so that cores are as busy as in a larger job; a
    sample is their mean.
    """

    def __init__(self, size: int, build: Callable[[], Sequence[Task]], copies: int = 1) -> None:
        self._copies = copies
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._ranks: list[Any] = []
        for port in [free_port() for _ in range(copies)]:
            for rank in range(size):
                pipe, child_end = context.Pipe()
                process = context.Process(
                    target=_enter,
                    args=(rank, size, port, build, child_end, os.getpid()),
                    daemon=True,
                )
                process.start()
                child_end.close()
                self._pipes.append(pipe)
                self._ranks.append(process)
        count = int(self._replies()[0][0])
        self._repeats = [1] * count
        self.samples: list[list[Sample]] = [[] for _ in range(count)]
        for task in range(count):
            self._take_sample(task)  # connects the groups and warms up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._ranks:
            process.kill()
            process.join()

    def sample_all(self) -> None:
        """Take one more sample of every task."""
        for task, samples in enumerate(self.samples):
            samples.append(self._take_sample(task))

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of each task on a quiet core: the trimmed mean of its samples."""
        return [trimmed_mean([sample.quiet_cpu for sample in samples]) for samples in self.samples]

    @property
    def cpu_slowdown(self) -> float:
        """The mean slowdown of all samples."""
        return fmean(sample.cpu_slowdown for samples in self.samples for sample in samples)

    @property
    def wall(self) -> list[float]:
        """Seconds of each task: the trimmed mean of its samples."""
        return [trimmed_mean([sample.wall for sample in samples]) for samples in self.samples]

    def uncertainty(self) -> float:
        """Return the largest relative standard error of the CPU seconds of a task."""
        return max(relative_error([each.quiet_cpu for each in samples]) for samples in self.samples)

    def _take_sample(self, task: int) -> Sample:
        repeats = self._repeats[task]
        for pipe in self._pipes:
            pipe.send((task, repeats))
        cpu, wall, slowdown = (sum(each) for each in zip(*self._replies(), strict=True))
        ranks = len(self._pipes)
        sample = Sample(cpu / repeats / self._copies, wall / repeats / ranks, slowdown / ranks)
        self._repeats[task] = max(1, min(MAX_REPEATS, round(SAMPLE_SECONDS / sample.wall)))
        return sample

    def _replies(self) -> list[tuple[float, ...]]:
        replies = []
        for pipe in self._pipes:
            if not pipe.poll(TIMEOUT.total_seconds()):
                raise RuntimeError("a rank does not respond")
            reply = pipe.recv()
            if isinstance(reply, str):
                raise RuntimeError(f"a rank failed: {reply}")
            replies.append(reply)
        return replies


def _enter(
    rank: int,
    size: int,
    port: int,
    build: Callable[[], Sequence[Task]],
    pipe: Connection,
    parent: int,
) -> None:
    """Run in a forked rank: join, build, then time tasks until the parent kills the process."""
    die_with_parent(parent)
    renew_thread_pool()
    try:
        store = join(rank, size, LOOPBACK, (LOOPBACK, port), TIMEOUT)  # noqa: F841 - rank 0 serves it
        tasks = build()
        pipe.send((len(tasks),))
        while True:
            task, repeats = pipe.recv()
            pipe.send(_run(tasks[task], repeats))
    except Exception:  # whatever it is, the parent raises it
        pipe.send(traceback.format_exc())
    os._exit(1)


def _run(task: Task, repeats: int) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and CPU slowdown of this rank.

    The first call is not timed: after other tasks the caches are cold, which costs a short task a
    twentieth and a long one nothing.
    """
    task()
    before = reference_workload()
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        task()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, (before + reference_workload()) / 2 / REFERENCE_SECONDS


def reference_workload() -> float:
    """Return the CPU seconds of a fixed workload like that of a step: Python, small products."""
    start = time.thread_time()
    seen: dict[int, int] = {}
    value = 1
    for turn in range(12_000):
        value = (value << 3 ^ turn) & (1 << 127) - 1
        seen[value & 1023] = value.bit_count()
    matrix = torch.ones(96, 96)
    product = matrix
    for _ in range(24):
        product = matrix @ product * 0.01 + matrix
    return time.thread_time() - start


def trimmed_mean(values: Sequence[float]) -> float:
    """Return the mean without the smallest and the largest of at least three values.

    It ignores one burst of other load, and varies less than the median of so few values.
    """
    kept = sorted(values)[1:-1] if len(values) > 2 else values
    return fmean(kept)


def relative_error(values: Sequence[float]) -> float:
    """Return the relative standard error of a trimmed mean of at least four values.

    It is computed from the values with the two extremes replaced by their neighbours (Tukey and
    McLaughlin, Sankhya A 25, 1963).
    """
    kept, count = sorted(values)[1:-1], len(values)
    spread = stdev([kept[0], *kept, kept[-1]])
    return float(spread * count**0.5 / len(kept) / fmean(kept))


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
