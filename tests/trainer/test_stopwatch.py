"""Ranks that time tasks on demand, and when a calibration has seen enough."""

from __future__ import annotations

import time

import pytest

from llmtrain_trainer.stopwatch import Sample, Stopwatch, median_error

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


def test_samples_agree_by_their_own_spread() -> None:
    def samples(*cpu: float) -> list[Sample]:
        return [Sample(seconds, 1.0) for seconds in cpu]

    assert median_error(samples(2, 2, 2)) == 0
    wide = median_error(samples(1, 2, 3))
    assert wide == pytest.approx(1.2533 * 1.4826 * 0.5 / 3**0.5)
    assert median_error(samples(*[1, 2, 3] * 4)) == pytest.approx(wide / 2)
    # one sample that met a burst of other load does not count
    assert median_error(samples(2, 2, 2, 2, 50)) == 0
