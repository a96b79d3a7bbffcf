"""The search finds layouts as fast as published ones, in time, within memory, with reasons."""

from __future__ import annotations

import time
from collections import Counter
from functools import cache

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.search.layouts import PlanOption, SearchSpace, search
from llmtrain_core.plan.time.published_runs import PublishedRun, published_runs
from llmtrain_core.plan.time.step_time import step_time
from llmtrain_core.plan.training_setup import TrainingSetup

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]


MISSES = {
    ("llama3-8b", "H100"): 2,
    ("llama3.1-405b", "H100"): 2,
    ("nemotron4-340b", "H100"): 2,
    ("llama3 70b", "H100"): 1,
    ("llama3 405b", "H100"): 1,
    ("llama3 405b", "B200"): 1,
    ("llama3 405b", "GB200"): 2,
    ("llama3 405b", "GB300"): 1,
    ("nemotron 340b", "H100"): 1,
    ("llama3 8b", "H100-500W"): 1,
    ("llama3 8b compiled", "H100-500W"): 2,
    ("llama3 8b tp", "H100-500W"): 1,
    ("llama3 8b tp async", "H100-500W"): 1,
    ("mpt 3b", "A100-80"): 1,
}
"""Number of published runs, by name and GPU, that do not fit according to the memory model although
they ran. For them the search may use the memory that the model computes for the published layout.
"""

RUNS = published_runs()


def _is_missed(run: PublishedRun) -> bool:
    return memory(run.setup).total > CATALOGUE[run.hardware].memory.value


def test_the_memory_model_rejects_only_the_known_runs() -> None:
    assert Counter((run.name, run.hardware) for run in RUNS if _is_missed(run)) == MISSES


SOURCES = sorted({run.source for run in RUNS})
SHARE = 3
"""`make test` has the first of so many runs of a source, `make fuzz` all."""


@pytest.mark.parametrize(
    ("source", "first"),
    [
        pytest.param(source, first, marks=pytest.mark.exhaustive if first else ())
        for source in SOURCES
        for first in range(min(SHARE, sum(run.source == source for run in RUNS)))
    ],
)
def test_the_best_is_at_least_as_fast_as_every_published_layout(source: str, first: int) -> None:
    """Both times are those of the model. The limit is the memory of the GPU, except for misses."""
    runs = [run for run in RUNS if run.source == source][first::SHARE]
    slower = []
    for run in runs:
        hardware = CATALOGUE[run.hardware]
        own = step_time(run.setup, hardware, constants_of(run.hardware)).seconds
        capacity = memory(run.setup).total if _is_missed(run) else int(hardware.memory.value)
        best = search(run.setup, hardware, run.gpus, capacity=capacity).best
        if best is None or best.time.seconds > own * (1 + 1e-9):
            slower.append((run.name, run.gpus, own, best and best.time.seconds))
    assert not slower


@pytest.mark.perf
@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "llama3.1-405b"])
def test_a_thousand_gpus_take_less_than_ten_seconds(name: str) -> None:
    base = TrainingSetup(SHAPES[name], Layout(), 2048)
    start = time.process_time()
    found = search(base, H100, 1024)
    assert time.process_time() - start < 10
    assert found.best is not None
    assert found.tried > 500


@cache
def pareto_of_70b() -> tuple[PlanOption, ...]:
    return search(TrainingSetup(SHAPES["llama3-70b"], Layout(), 1024), H100, 256).pareto


def test_layouts_fit_and_use_all_gpus() -> None:
    assert pareto_of_70b()
    for candidate in pareto_of_70b():
        assert candidate.memory.fits
        assert candidate.setup.layout.world_size == 256
        assert candidate.setup.global_batch == 1024


def test_the_pareto_list_trades_speed_for_memory() -> None:
    pareto = pareto_of_70b()
    assert len(pareto) >= 3
    speeds = [c.tokens_per_second for c in pareto]
    needs = [c.memory.total for c in pareto]
    assert speeds == sorted(speeds, reverse=True)
    assert needs == sorted(needs, reverse=True)


def test_the_search_is_deterministic() -> None:
    base = TrainingSetup(SHAPES["llama3-8b"], Layout(), 512)
    assert search(base, H100, 64) == search(base, H100, 64)


def test_less_recomputation_is_chosen_where_memory_allows() -> None:
    base = TrainingSetup(SHAPES["llama3-8b"], Layout(), 64)
    large, small = (search(base, H100, 64, capacity=gib * 1024**3).best for gib in (80, 16))
    assert large is not None
    assert small is not None
    assert large.setup.checkpointing == "none"
    assert small.setup.checkpointing != "none" or small.setup.layout != large.setup.layout
    assert small.memory.total <= 16 * 1024**3 < large.memory.total
    assert small.time.seconds > large.time.seconds


def test_layouts_are_inside_the_search_space() -> None:
    space = SearchSpace(
        checkpointings=("full",), schedules=("1F1B",), context=False, replicate=False
    )
    found = search(TrainingSetup(SHAPES["llama3-8b"], Layout(), 512), H100, 64, space)
    for candidate in found.pareto:
        setup = candidate.setup
        assert (setup.checkpointing, setup.schedule, setup.chunks) == ("full", "1F1B", 1)
        assert (setup.layout.context, setup.layout.replicate) == (1, 1)


def test_if_nothing_fits_there_are_reasons_and_the_layout_with_least_memory() -> None:
    found = search(TrainingSetup(SHAPES["llama3.1-405b"], Layout(), 64), H100, 8)
    assert found.best is None
    assert found.pareto == ()
    assert found.nearest is not None
    assert found.nearest.memory.total > H100.memory.value
    assert sum(found.rejected.values()) > 0
    assert any("needs more than H100's 80 GiB" in reason for reason in found.rejected)


def test_reasons_name_what_does_not_divide() -> None:
    found = search(TrainingSetup(SHAPES["llama3-8b"], Layout(), 63), H100, 63)
    reasons = " ".join(found.rejected)
    assert "tensor 3 does not divide the model's heads" in reasons
    free = search(TrainingSetup(SHAPES["llama3-8b"], Layout(), 64), H100, 63)
    assert any("cannot be split" in reason for reason in free.rejected)


def test_any_batch_is_rounded_to_a_multiple_of_the_replicas() -> None:
    found = search(
        TrainingSetup(SHAPES["llama3-8b"], Layout(), 512), H100, 24, SearchSpace(any_batch=True)
    )
    assert found.best is not None
    setup = found.best.setup
    assert setup.global_batch % (setup.replicas * setup.micro_batch) == 0
    assert abs(setup.global_batch - 512) <= setup.replicas * setup.micro_batch


def test_reasons_are_whole_sentences_counted_by_kind() -> None:
    """Reasons that differ only in numbers are counted under the first one."""
    found = search(TrainingSetup(SHAPES["llama3-8b"], Layout(), 7), H100, 1024)
    split = [reason for reason in found.rejected if "cannot be split" in reason]
    assert split == [
        "a batch of 7 sequences cannot be split into micro-batches of 1 over 1024 data ranks"
    ]
    assert found.rejected[split[0]] > 10
    assert list(found.rejected.values()) == sorted(found.rejected.values(), reverse=True)


def test_rounding_never_leads_to_a_batch_larger_than_the_run() -> None:
    base = TrainingSetup(SHAPES["llama3-8b"], Layout(), 64)
    free, bound = (
        search(base, H100, 512, SearchSpace(any_batch=True, largest_batch=most))
        for most in (None, 100)
    )
    assert free.best is not None
    assert free.best.setup.global_batch > 100
    assert bound.best is not None
    assert all(candidate.setup.global_batch <= 100 for candidate in bound.pareto)
    assert any("the run has 100" in reason for reason in bound.rejected)
