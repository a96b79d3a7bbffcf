"""Failures, storage and money."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.checkpoint_size import storage, token_bytes
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.time.goodput import NODE_FAILURES_PER_DAY, Failures, goodput, young_daly
from llmtrain_core.plan.time.run_cost import run_cost
from llmtrain_core.plan.training_setup import TrainingSetup

pytestmark = pytest.mark.unit


def test_the_failure_rate_is_that_of_llama_3_405b() -> None:
    """419 unexpected interruptions in 54 days on 16,384 GPUs: one every 3.1 hours."""
    assert pytest.approx(419 / (2048 * 54), rel=2e-3) == NODE_FAILURES_PER_DAY
    assert goodput(2048).mean_seconds_between_failures / 3600 == pytest.approx(3.1, abs=0.05)


@pytest.mark.parametrize(
    ("nodes", "rate", "save", "restart", "minutes", "ratio"),
    [
        (2048, 3.79e-3, 30, 15 * 60, 13.6, 0.851),
        (2048, 3.79e-3, 30, 5 * 60, 13.6, 0.903),
        (2048, 3.79e-3, 10, 5 * 60, 7.9, 0.932),
        (128, 6.50e-3, 30, 10 * 60, 42.0, 0.970),
    ],
)
def test_published_goodputs(
    nodes: int, rate: float, save: float, restart: float, minutes: float, ratio: float
) -> None:
    found = goodput(nodes, Failures(rate, save, restart))
    assert found.checkpoint_seconds / 60 == pytest.approx(minutes, rel=0.01)
    assert found.ratio == pytest.approx(ratio, abs=0.002)


def test_mean_time_to_failure_of_published_clusters() -> None:
    """RSC-1: 7.9 hours at 1,024 GPUs is what 128 nodes would have at 23.7 failures per 1,000."""
    found = goodput(128, Failures(6.50e-3))
    assert found.mean_seconds_between_failures / 3600 == pytest.approx(28.8, abs=0.1)


@given(st.integers(1, 20000), st.floats(1, 600), st.floats(0.3, 3.0))
def test_no_other_interval_is_better_by_more_than_the_approximation(
    nodes: int, save: float, factor: float
) -> None:
    failures = Failures(save_seconds=save, restart_seconds=0)
    best = goodput(nodes, failures)
    interval = best.checkpoint_seconds
    if save > interval / 10:
        return  # first order holds where a save is short against the interval
    other = goodput(nodes, failures, interval_seconds=factor * interval)
    assert other.ratio <= best.ratio + 0.01


def test_young_daly() -> None:
    assert young_daly(50, 10_000) == 1000


def test_hopeless_runs_have_no_goodput() -> None:
    assert goodput(10**7).ratio == 0


def test_a_hopeless_run_moves_once_restarts_are_as_quick_as_it_says() -> None:
    found = goodput(65536)
    assert found.ratio == 0
    assert 0 < found.restart_within < 300
    assert goodput(65536, Failures(restart_seconds=0.9 * found.restart_within)).ratio > 0
    assert goodput(65536, Failures(restart_seconds=1.01 * found.restart_within)).ratio == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_node_day": float("nan")}, "--failures-per-node-day nan .*use 0 or more"),
        ({"per_node_day": -1.0}, "--failures-per-node-day -1 "),
        ({"save_seconds": 0.0}, "--save-seconds 0 .*use 0.001 or more"),
        ({"restart_seconds": float("inf")}, "--restart-seconds inf "),
    ],
)
def test_failures_that_cannot_be_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Failures(**changes)


def test_tokens_take_two_bytes_below_65536_and_four_above() -> None:
    assert [token_bytes(n) for n in (32000, 65536, 65537, 128256)] == [2, 2, 4, 4]


def test_a_checkpoint_is_weights_and_two_moments() -> None:
    setup = TrainingSetup(SHAPES["llama3-8b"], Layout(data=8), 8)
    found = storage(setup, 10**12, keep=2)
    count = count_parameters(setup.shape).total
    assert found.tokens == 4 * 10**12
    assert found.checkpoint == 12 * count
    assert found.checkpoints == 3 * found.checkpoint
    assert found.export == 2 * count


def test_money_and_energy() -> None:
    found = run_cost(CATALOGUE["H100"], 8, 3600 * 10, price_per_gpu_hour=2.0)
    assert found.gpu_hours == 80
    assert found.dollars == 160
    assert found.kilowatt_hours == pytest.approx(80 * 0.7 * 1.45 * 1.25)
    assert run_cost(CATALOGUE["H100"], 8, 3600).dollars == 8 * CATALOGUE["H100"].price.value
