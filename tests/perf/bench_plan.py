"""Compare the plan with published runs, the search with their layouts, and check two estimates.

`python -m pytest tests/perf/bench_plan.py -s` prints the tables. The limits are asserted.
"""

from __future__ import annotations

import time
from statistics import median

import pytest

from llmtrain_core.plan.constants import CONSTANTS, constants_of
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.model.flops import days_at
from llmtrain_core.plan.search.layouts import search
from llmtrain_core.plan.time.calibration import (
    BOUNDS,
    ComparedRun,
    compare_with_published,
    fit_all,
    predict,
)
from llmtrain_core.plan.time.published_runs import published_runs

pytestmark = [pytest.mark.perf, pytest.mark.timeout(600)]

RUNS = published_runs()


def _summary(name: str, found: list[ComparedRun]) -> str:
    errors = sorted(abs(one.error) for one in found)
    near = sum(error <= 0.20 for error in errors) / len(errors)
    return (
        f"{name:<28}{len(errors):>4}  median {median(errors):>6.1%}  worst {errors[-1]:>6.1%}"
        f"  within 20 % {near:>5.0%}"
    )


def test_predicted_against_published_step_times() -> None:
    found = compare_with_published(RUNS, constants_of)
    print(
        f"\n{'':2}{'RUN':<20}{'GPU':<10}{'GPUS':>5}  {'LAYOUT':<22}{'TYPE':<6}"
        f"{'MEASURED':>9}{'PLANNED':>9}{'ERROR':>8}"
    )
    for one in sorted(found, key=lambda c: (c.run.source, c.run.name, c.run.gpus, not c.fitted)):
        run = one.run
        kind = {"float8": "fp8", "bfloat16": "bf16"}[run.setup.precision]
        print(
            f"{'f' if one.fitted else 't':<2}{run.name:<20.20}{run.hardware:<10}{run.gpus:>5}"
            f"  {run.setup.layout!s:<22}{kind:<6}{run.seconds:>9.3f}{one.predicted:>9.3f}"
            f"{one.error:>+8.1%}"
        )
    print("f: used to fit the constants, t: used to test them\n")
    tested = [one for one in found if not one.fitted]
    print(_summary("fitted half", [one for one in found if one.fitted]))
    print(_summary("TESTED HALF", tested))
    for source in sorted({one.run.source.split()[0] for one in tested}):
        print(_summary(f"  {source}", [c for c in tested if c.run.source.startswith(source)]))
    errors = [abs(one.error) for one in tested]
    assert len(errors) >= 25
    assert median(errors) <= 0.10
    assert sum(error <= 0.20 for error in errors) >= 0.9 * len(errors)


def test_runs_on_unknown_networks() -> None:
    """Print runs across servers whose network is not published. They are not asserted."""
    print(f"\n{'NOT COUNTED':<20}{'GPUS':>5}  {'LAYOUT':<22}{'MEASURED':>9}{'PLANNED':>9}")
    for run in RUNS:
        if not run.counted:
            planned = predict(run, constants_of(run.hardware))
            print(
                f"{run.name:<20}{run.gpus:>5}  {run.setup.layout!s:<22}{run.seconds:>9.3f}"
                f"{planned:>9.3f}{planned / run.seconds - 1:>+8.1%}"
            )
    assert any(not run.counted for run in RUNS)


def test_constants_predict_sources_left_out_of_the_fit() -> None:
    """Fit the constants to all sources but one, and test them on that one. The result is only
    printed, because some GPU types have a single source."""
    print()
    for source in sorted({run.source.split()[0] for run in RUNS if run.counted}):
        fitted = [run for run in RUNS if run.counted and not run.source.startswith(source)]
        left_out = [run for run in RUNS if run.counted and run.source.startswith(source)]
        constants = fit_all(fitted)
        known = [r for r in left_out if r.hardware.split("-")[0] in constants]
        if known:
            compared = [
                ComparedRun(r, predict(r, constants[r.hardware.split("-")[0]]), False)
                for r in known
            ]
            print(_summary(f"without {source}"[:28], compared))


def test_committed_constants_are_what_fitting_gives() -> None:
    start = time.process_time()
    found = fit_all(RUNS)
    print(f"\nfitted {len(found)} types in {time.process_time() - start:.1f} s of CPU")
    for kind, constants in found.items():
        for name in BOUNDS:
            committed = getattr(CONSTANTS[kind], name)
            assert getattr(constants, name) == pytest.approx(committed, rel=1e-3), (kind, name)


def test_search_is_as_good_as_every_published_layout() -> None:
    """Both times are those of the model. The search may use the memory of the GPU, or that of the
    published layout if the model computes more for it."""
    print(f"\n{'RUN':<20}{'GPUS':>5}  {'PUBLISHED':<22}{'s':>8}  {'FOUND':<24}{'s':>8}{'CPU s':>7}")
    for run in RUNS:
        hardware = CATALOGUE[run.hardware]
        own = predict(run, constants_of(run.hardware))
        needed = max(memory(run.setup).total, int(hardware.memory.value))
        start = time.process_time()
        best = search(run.setup, hardware, run.gpus, capacity=needed).best
        took = time.process_time() - start
        assert best is not None
        print(
            f"{run.name:<20.20}{run.gpus:>5}  {run.setup.layout!s:<22}{own:>8.3f}"
            f"  {best.setup.layout!s:<24}{best.time.seconds:>8.3f}{took:>7.2f}"
        )
        assert best.time.seconds <= own * (1 + 1e-9)
        assert took < 10


def test_estimates_of_the_requirements() -> None:
    """Print the figures of the requirements for GPT-3, with the assumptions that lead to them."""
    flops = 6 * 175e9 * 300e9
    rows = (
        ("10,000 V100, tensor cores, 30 %", days_at(flops, 10_000, 125e12, 0.30)),
        ("10,000 V100, tensor cores, 9.6 %", days_at(flops, 10_000, 125e12, 0.096)),
        ("6,000 H100, 67 TFLOP/s (float32), 30 %", days_at(flops, 6000, 67e12, 0.30)),
        ("6,000 H100, tensor cores, 30 %", days_at(flops, 6000, 989e12, 0.30)),
        ("406 H100, tensor cores, 30 %", days_at(flops, 406, 989e12, 0.30)),
    )
    print(
        f"\n175e9 x 300e9 x 6 = {flops:.3g} FLOPs;"
        " the requirements state a month for the first and third"
    )
    for name, days in rows:
        print(f"  {name:<42}{days:>7.1f} days")
    print(
        "  1e12 tokens x 4 B = 4.00 TB = 3.64 TiB = 50 x 80 GB = 46.6 x 80 GiB;"
        " 51.2 is 4 TiB / 80 GiB"
    )
    assert rows[2][1] == pytest.approx(30.2, abs=0.1)
