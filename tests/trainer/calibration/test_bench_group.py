"""Ranks that time tasks on demand, and when a calibration has seen enough."""

from __future__ import annotations

import time
from statistics import fmean, stdev

import pytest

from llmtrain_trainer.calibration.bench_group import (
    YARDSTICK_SECONDS,
    Sample,
    Stopwatch,
    relative_error,
    trimmed_mean,
    yardstick,
)

pytestmark = pytest.mark.torch


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_samples_are_cpu_seconds_of_all_ranks_of_a_copy() -> None:
    with Stopwatch(2, lambda: [lambda: burn(0.01), lambda: time.sleep(0.05)], copies=2) as watch:
        for _ in range(3):
            watch.round()
    burning, sleeping = ([sample.cpu for sample in samples] for samples in watch.samples)
    assert trimmed_mean(burning) == pytest.approx(0.02, rel=0.3)
    assert max(sleeping) < 0.2 * min(burning)
    assert watch.wall[1] >= 0.05


def test_a_rank_that_fails_is_heard() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        Stopwatch(2, lambda: [lambda: 1 / 0])


def test_samples_of_a_core_at_another_pace_are_compared_at_one() -> None:
    assert Sample(cpu=3.0, wall=9.0, pace=1.5).steady == Sample(cpu=2.0, wall=2.0, pace=1.0).steady
    with Stopwatch(1, lambda: [yardstick]) as watch:
        for _ in range(15):
            watch.round()
    (samples,) = watch.samples
    assert watch.pace == pytest.approx(fmean(sample.pace for sample in samples))
    # The task is the yardstick itself, so it costs the same at any pace.
    assert watch.cpu[0] == pytest.approx(YARDSTICK_SECONDS, rel=0.3)


def test_means_agree_by_the_spread_of_their_own_samples() -> None:
    assert relative_error([2, 2, 2]) == 0
    wide = relative_error([1, 2, 3, 4, 5])
    assert wide == pytest.approx(stdev([2, 2, 3, 4, 4]) * 5**0.5 / 3 / 3)
    assert relative_error([1, 2, 3, 4, 5] * 9) < wide / 3


def test_a_burst_of_other_load_does_not_count() -> None:
    assert trimmed_mean([2, 2, 2, 50, 2]) == 2
    assert relative_error([2, 2, 2, 50, 2]) == 0
