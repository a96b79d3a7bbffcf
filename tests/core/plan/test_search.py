"""The search: as good as what people published, fast, under the limit, with reasons."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.errors import PlanError
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory import memory
from llmtrain_core.plan.published import PublishedRun, published_runs
from llmtrain_core.plan.recipe import Recipe
from llmtrain_core.plan.search import Space, gpus_for_deadline, least_gpus, search
from llmtrain_core.plan.shapes import SHAPES
from llmtrain_core.plan.step import step_time

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]


def _distinct() -> list[PublishedRun]:
    """The largest run of every model and GPU type; the benchmark does all."""
    runs = sorted(published_runs(), key=lambda run: run.gpus)
    return list({(r.name, r.hardware): r for r in runs}.values())


def test_the_best_is_at_least_as_fast_as_every_published_layout() -> None:
    """Within the memory that the published layout itself takes, by the same model."""
    runs = _distinct()
    assert len(runs) >= 25
    slower = []
    for run in runs:
        hardware = CATALOGUE[run.hardware]
        own = step_time(run.recipe, hardware, constants_of(run.hardware)).seconds
        needed = max(memory(run.recipe).total, int(hardware.memory.value))
        best = search(run.recipe, hardware, run.gpus, capacity=needed).best
        if best is None or best.time.seconds > own * (1 + 1e-9):
            slower.append((run.name, run.gpus, own, best and best.time.seconds))
    assert not slower


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "llama3.1-405b"])
def test_a_thousand_gpus_take_less_than_ten_seconds(name: str) -> None:
    base = Recipe(SHAPES[name], Layout(), 2048)
    start = time.process_time()
    found = search(base, H100, 1024)
    assert time.process_time() - start < 10
    assert found.best is not None
    assert found.tried > 500


def test_what_is_found_fits_and_uses_all_gpus() -> None:
    found = search(Recipe(SHAPES["llama3-70b"], Layout(), 1024), H100, 256)
    assert found.pareto
    for candidate in found.pareto:
        assert candidate.memory.fits
        assert candidate.recipe.layout.world_size == 256
        assert candidate.recipe.global_batch == 1024


def test_the_pareto_list_trades_speed_for_memory() -> None:
    pareto = search(Recipe(SHAPES["llama3-70b"], Layout(), 1024), H100, 256).pareto
    assert len(pareto) >= 3
    speeds = [c.tokens_per_second for c in pareto]
    needs = [c.memory.total for c in pareto]
    assert speeds == sorted(speeds, reverse=True)
    assert needs == sorted(needs, reverse=True)


def test_the_answer_is_the_same_every_time() -> None:
    base = Recipe(SHAPES["llama3-8b"], Layout(), 512)
    assert search(base, H100, 64) == search(base, H100, 64)


def test_less_recomputation_is_chosen_where_memory_allows() -> None:
    base = Recipe(SHAPES["llama3-8b"], Layout(), 64)
    large, small = (search(base, H100, 64, capacity=gib * 1024**3).best for gib in (80, 16))
    assert large is not None
    assert small is not None
    assert large.recipe.checkpointing == "none"
    assert small.recipe.checkpointing != "none" or small.recipe.layout != large.recipe.layout
    assert small.memory.total <= 16 * 1024**3 < large.memory.total
    assert small.time.seconds > large.time.seconds


def test_the_space_is_kept() -> None:
    space = Space(checkpointings=("full",), schedules=("1F1B",), context=False, replicate=False)
    found = search(Recipe(SHAPES["llama3-8b"], Layout(), 512), H100, 64, space)
    for candidate in found.pareto:
        recipe = candidate.recipe
        assert (recipe.checkpointing, recipe.schedule, recipe.chunks) == ("full", "1F1B", 1)
        assert (recipe.layout.context, recipe.layout.replicate) == (1, 1)


def test_reasons_and_the_leanest_layout_where_nothing_fits() -> None:
    found = search(Recipe(SHAPES["llama3.1-405b"], Layout(), 64), H100, 8)
    assert found.best is None
    assert found.pareto == ()
    assert found.nearest is not None
    assert found.nearest.memory.total > H100.memory.value
    assert sum(found.rejected.values()) > 0
    assert any("needs more than H100's 80 GiB" in reason for reason in found.rejected)


def test_reasons_name_what_does_not_divide() -> None:
    found = search(Recipe(SHAPES["llama3-8b"], Layout(), 63), H100, 63)
    reasons = " ".join(found.rejected)
    assert "does not divide the model's heads" in reasons
    free = search(Recipe(SHAPES["llama3-8b"], Layout(), 64), H100, 63)
    assert any("cannot be split" in reason for reason in free.rejected)


def test_any_batch_rounds_to_what_the_layout_splits() -> None:
    found = search(Recipe(SHAPES["llama3-8b"], Layout(), 512), H100, 24, Space(any_batch=True))
    assert found.best is not None
    recipe = found.best.recipe
    assert recipe.global_batch % (recipe.replicas * recipe.micro_batch) == 0
    assert abs(recipe.global_batch - 512) <= recipe.replicas * recipe.micro_batch


def test_a_deadline_finds_the_least_gpus() -> None:
    base = Recipe(SHAPES["llama3-8b"], Layout(), 512)
    gpus, found = gpus_for_deadline(base, H100, 10**12, days=10)
    assert found.best is not None
    assert 10**12 / found.best.tokens_per_second <= 10 * 86400
    half = search(base, H100, gpus // 2, Space(any_batch=True)).best
    assert half is not None
    assert 10**12 / half.tokens_per_second > 10 * 86400


def test_an_impossible_deadline_says_what_is_possible() -> None:
    base = Recipe(SHAPES["llama3-8b"], Layout(), 512)
    with pytest.raises(PlanError, match=r"in 0\.001 days.*the fastest takes at least .* days"):
        gpus_for_deadline(base, H100, 10**12, days=0.001, limit=64)


def test_the_least_gpus_that_hold_a_model() -> None:
    base = Recipe(SHAPES["llama3-70b"], Layout(), 512)
    least = least_gpus(base, H100, 8)
    assert least is not None
    assert search(base, H100, least, Space(any_batch=True)).best is not None
    assert search(base, H100, least // 2, Space(any_batch=True)).best is None
    assert least_gpus(replace(base, shape=SHAPES["llama3.1-405b"]), H100, 8, limit=16) is None
