"""Ranks that time tasks on demand, and the statistics of their samples."""

from __future__ import annotations

import time
from statistics import fmean, stdev

import pytest

from llmtrain_trainer.calibration.bench_group import (
    REFERENCE_SECONDS,
    BenchmarkGroup,
    Sample,
    reference_workload,
    relative_error,
    trimmed_mean,
)

pytestmark = [pytest.mark.torch, pytest.mark.serial]


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_samples_are_cpu_seconds_of_all_ranks_of_a_copy() -> None:
    tasks = [lambda: burn(0.01), lambda: time.sleep(0.05)]
    with BenchmarkGroup(2, lambda: tasks, copies=2) as group:
        for _ in range(3):
            group.sample_all()
    burning, sleeping = ([sample.cpu for sample in samples] for samples in group.samples)
    assert trimmed_mean(burning) == pytest.approx(0.02, rel=0.3)
    assert max(sleeping) < 0.2 * min(burning)
    assert group.wall[1] >= 0.05


def test_the_error_of_a_rank_is_raised() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        BenchmarkGroup(2, lambda: [lambda: 1 / 0])


def test_samples_are_scaled_to_a_quiet_core() -> None:
    assert (
        Sample(cpu=3.0, wall=9.0, cpu_slowdown=1.5).quiet_cpu
        == Sample(cpu=2.0, wall=2.0, cpu_slowdown=1.0).quiet_cpu
    )
    with BenchmarkGroup(1, lambda: [reference_workload]) as group:
        for _ in range(15):
            group.sample_all()
    (samples,) = group.samples
    assert group.cpu_slowdown == pytest.approx(fmean(sample.cpu_slowdown for sample in samples))
    # The task is the reference workload itself, so it costs the same at any slowdown.
    assert group.cpu[0] == pytest.approx(REFERENCE_SECONDS, rel=0.3)


def test_the_error_of_a_mean_follows_from_the_spread_of_its_samples() -> None:
    assert relative_error([2, 2, 2]) == 0
    wide = relative_error([1, 2, 3, 4, 5])
    assert wide == pytest.approx(stdev([2, 2, 3, 4, 4]) * 5**0.5 / 3 / 3)
    assert relative_error([1, 2, 3, 4, 5] * 9) < wide / 3


def test_a_burst_of_other_load_does_not_count() -> None:
    assert trimmed_mean([2, 2, 2, 50, 2]) == 2
    assert relative_error([2, 2, 2, 50, 2]) == 0
