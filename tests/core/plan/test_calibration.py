"""The step model against published runs that it was not fitted to."""

from __future__ import annotations

from statistics import median

import pytest

from llmtrain_core.plan.constants import (
    CONSTANTS,
    FALLBACK_TYPES,
    INITIAL,
    constants_of,
    fitted_type_of,
)
from llmtrain_core.plan.time.calibration import BOUNDS, compare_with_published, fit, split
from llmtrain_core.plan.time.published_runs import PublishedRun, published_runs
from llmtrain_core.plan.training_setup import TrainingSetup

pytestmark = pytest.mark.unit

RUNS = published_runs()
SOURCES = {
    "pytorch/torchtitan",
    "Korthikanti",
    "NVIDIA-NeMo/Megatron-Bridge",
    "huggingface/nanotron",
    "NVIDIA/dgxc-benchmarking",
}


def test_there_are_enough_runs_of_every_source_and_each_names_it() -> None:
    counted = [run for run in RUNS if run.counted]
    assert len(counted) >= 50
    assert {run.source.split()[0] for run in counted} >= SOURCES
    assert all(isinstance(run.setup, TrainingSetup) and run.seconds > 0 for run in RUNS)


def test_halves_are_disjoint_and_complete_and_mix_every_large_type() -> None:
    fitted, tested = split(RUNS)
    assert len(fitted) + len(tested) == sum(run.counted for run in RUNS)
    assert not {id(run) for run in fitted} & {id(run) for run in tested}
    assert abs(len(fitted) - len(tested)) <= len(CONSTANTS)
    assert len(tested) >= 25
    assert {fitted_type_of(run.hardware) for run in tested} == set(CONSTANTS)


def test_published_figures_of_which_the_source_gives_the_utilisation() -> None:
    """dgxc prints 54.10 % for its 70B run with its own FLOPs: 3.94e15 a sequence."""
    run = next(r for r in RUNS if r.name == "llama3-70b" and r.gpus == 64)
    assert 128 * 3.94e15 / (run.seconds * 64 * 989e12) == pytest.approx(0.541, abs=0.001)


def test_error_on_the_half_that_was_not_fitted() -> None:
    """The bars: median error at most 10 %, nine of ten within 20 %."""
    errors = [abs(j.error) for j in compare_with_published(RUNS, constants_of) if not j.fitted]
    assert median(errors) <= 0.10
    assert sum(error <= 0.20 for error in errors) >= 0.9 * len(errors)


def test_constants_are_inside_the_bounds_that_are_believable() -> None:
    for constants in CONSTANTS.values():
        for name, (low, high) in BOUNDS.items():
            assert low <= getattr(constants, name) <= high


@pytest.mark.parametrize("kind", ["A100", "H200", "GB200"])
def test_committed_constants_are_what_fitting_gives(kind: str) -> None:
    """All types are fitted again by the benchmark; these three are quick."""
    mine = [run for run in split(RUNS)[0] if fitted_type_of(run.hardware) == kind]
    start = CONSTANTS[FALLBACK_TYPES[kind]] if kind in FALLBACK_TYPES else INITIAL
    found = fit(mine, start)
    for name in BOUNDS:
        assert getattr(found, name) == pytest.approx(getattr(CONSTANTS[kind], name), rel=1e-3)


def test_fitting_finds_a_constant_that_was_hidden_in_the_data() -> None:
    """Runs made by the model itself with other constants lead back to them."""
    from dataclasses import replace

    from llmtrain_core.plan.time.calibration import predict

    hidden = replace(INITIAL, product_efficiency=0.61, attention_efficiency=0.5)
    runs: list[PublishedRun] = [r for r in RUNS if r.hardware == "H100" and "dgxc" in r.source]
    runs = [run for run in runs if run.setup.precision == "bfloat16"]
    made = [replace(run, seconds=predict(run, hidden)) for run in runs]
    found = fit(made, INITIAL)
    assert max(abs(predict(r, found) / r.seconds - 1) for r in made) < 0.03
