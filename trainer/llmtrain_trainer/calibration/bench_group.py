"""Forked ranks that stand ready and time what they are told to, one task at a time.

Building a trainer takes longer than its steps. So everything is built once, and then samples of all
tasks take turns: whatever the machine does meanwhile meets all of them alike. A rank that waits for
its turn sleeps.

A core shares its execution units and its clock with neighbours, some of them in other machines on
the host, and does half as much in a CPU second while they are busy. So every rank also times a
yardstick before and after: a sample tells at which pace its core went.
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
PATIENCE = timedelta(seconds=300)
LEAST_SECONDS, MOST_REPEATS = 0.05, 8
"""A task is repeated until a sample takes about so long; so often at most."""

YARDSTICK_SECONDS = 0.004
"""What `yardstick` takes of a quiet core."""

Task = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a task took once."""

    cpu: float
    """CPU seconds of all ranks together."""
    wall: float
    """Seconds, other load included."""
    pace: float
    """CPU seconds that the cores needed for what takes a quiet one a second."""

    @property
    def steady(self) -> float:
        """CPU seconds that a quiet core would have needed."""
        return self.cpu / self.pace


class Stopwatch:
    """Ranks of one process group, or of several alike beside each other, and their tasks.

    `build` runs once on every rank and returns the same tasks on each. With `copies` groups, all do
    the same at the same time, so that cores are as busy as in a larger job; a sample is their mean.
    """

    def __init__(self, size: int, build: Callable[[], Sequence[Task]], copies: int = 1) -> None:
        self._copies = copies
        context = multiprocessing.get_context("fork")
        self._lines: list[Connection] = []
        self._ranks: list[Any] = []
        for port in [free_port() for _ in range(copies)]:
            for rank in range(size):
                line, far = context.Pipe()
                process = context.Process(
                    target=_enter, args=(rank, size, port, build, far, os.getpid()), daemon=True
                )
                process.start()
                far.close()
                self._lines.append(line)
                self._ranks.append(process)
        count = int(self._answers()[0][0])
        self._repeats = [1] * count
        self.samples: list[list[Sample]] = [[] for _ in range(count)]
        for task in range(count):
            self._time(task)  # connects and plans

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._ranks:
            process.kill()
            process.join()

    def round(self) -> None:
        """Take one more sample of every task."""
        for task, samples in enumerate(self.samples):
            samples.append(self._time(task))

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of each task on a quiet core: the trimmed mean of its samples."""
        return [trimmed_mean([sample.steady for sample in samples]) for samples in self.samples]

    @property
    def pace(self) -> float:
        """The mean pace of all samples."""
        return fmean(sample.pace for samples in self.samples for sample in samples)

    @property
    def wall(self) -> list[float]:
        """Seconds of each task: the trimmed mean of its samples."""
        return [trimmed_mean([sample.wall for sample in samples]) for samples in self.samples]

    def uncertainty(self) -> float:
        """Return the largest relative standard error of the CPU seconds of a task."""
        return max(relative_error([each.steady for each in samples]) for samples in self.samples)

    def _time(self, task: int) -> Sample:
        repeats = self._repeats[task]
        for line in self._lines:
            line.send((task, repeats))
        cpu, wall, pace = (sum(each) for each in zip(*self._answers(), strict=True))
        ranks = len(self._lines)
        sample = Sample(cpu / repeats / self._copies, wall / repeats / ranks, pace / ranks)
        self._repeats[task] = max(1, min(MOST_REPEATS, round(LEAST_SECONDS / sample.wall)))
        return sample

    def _answers(self) -> list[tuple[float, ...]]:
        found = []
        for line in self._lines:
            if not line.poll(PATIENCE.total_seconds()):
                raise RuntimeError("a rank does not answer")
            answer = line.recv()
            if isinstance(answer, str):
                raise RuntimeError(f"a rank failed: {answer}")
            found.append(answer)
        return found


def _enter(
    rank: int,
    size: int,
    port: int,
    build: Callable[[], Sequence[Task]],
    line: Connection,
    parent: int,
) -> None:
    """Run in a forked rank: join, build, then time what the parent asks for until it ends us."""
    die_with_parent(parent)
    renew_thread_pool()
    try:
        store = join(rank, size, LOOPBACK, (LOOPBACK, port), PATIENCE)  # noqa: F841 - rank 0 serves it
        tasks = build()
        line.send((len(tasks),))
        while True:
            task, repeats = line.recv()
            line.send(_run(tasks[task], repeats))
    except Exception:  # the border of the process: the parent raises it
        line.send(traceback.format_exc())
    os._exit(1)


def _run(task: Task, repeats: int) -> tuple[float, float, float]:
    """Return CPU and wall seconds of this rank, and its pace.

    The first call is not timed: after other tasks it finds cold caches, which costs a short task a
    twentieth and a long one nothing.
    """
    task()
    before = yardstick()
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        task()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, (before + yardstick()) / 2 / YARDSTICK_SECONDS


def yardstick() -> float:
    """Return the CPU seconds of a fixed piece of what steps are made of: Python, small products."""
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
    """Return the mean without the least and the greatest of at least three values.

    One burst of other load does not count, and it is steadier than the median of as few.
    """
    kept = sorted(values)[1:-1] if len(values) > 2 else values
    return fmean(kept)


def relative_error(values: Sequence[float]) -> float:
    """Return the relative standard error of a trimmed mean of at least four values.

    From the spread of the values with the two that are left out moved to their neighbours (Tukey
    and McLaughlin, Sankhya A 25, 1963).
    """
    kept, count = sorted(values)[1:-1], len(values)
    spread = stdev([kept[0], *kept, kept[-1]])
    return float(spread * count**0.5 / len(kept) / fmean(kept))


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
