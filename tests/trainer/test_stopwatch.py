"""Ranks that time tasks on demand, and when a calibration has seen enough."""

from __future__ import annotations

import time
from statistics import stdev

import pytest

from llmtrain_trainer.stopwatch import Stopwatch, relative_error, trimmed_mean

pytestmark = pytest.mark.torch


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_samples_are_cpu_seconds_of_all_ranks_of_a_copy() -> None:
    with Stopwatch(2, lambda: [lambda: burn(0.01), lambda: time.sleep(0.05)], copies=2) as watch:
        for _ in range(3):
            watch.round()
    burning, sleeping = watch.cpu
    assert burning == pytest.approx(0.02, rel=0.3)
    assert sleeping < 0.2 * burning
    assert watch.wall[1] >= 0.05


def test_a_rank_that_fails_is_heard() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        Stopwatch(2, lambda: [lambda: 1 / 0])


def test_means_agree_by_the_spread_of_their_own_samples() -> None:
    assert relative_error([2, 2, 2]) == 0
    wide = relative_error([1, 2, 3, 4, 5])
    assert wide == pytest.approx(stdev([2, 2, 3, 4, 4]) * 5**0.5 / 3 / 3)
    assert relative_error([1, 2, 3, 4, 5] * 9) < wide / 3


def test_a_burst_of_other_load_does_not_count() -> None:
    assert trimmed_mean([2, 2, 2, 50, 2]) == 2
    assert relative_error([2, 2, 2, 50, 2]) == 0
