"""The least GPUs and the nearest batch: what is named works, and nothing smaller does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.search.layouts import SearchSpace, any_layout_fits, search
from llmtrain_core.plan.search.sizing import (
    WINDOW,
    gpus_for_deadline,
    least_gpus,
    nearest_batch,
    nearest_smaller,
)
from llmtrain_core.plan.training_setup import TrainingSetup

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]
ANY = SearchSpace(any_batch=True)
EIGHT = TrainingSetup(SHAPES["llama3-8b"], Layout(), 512)


@pytest.mark.parametrize(
    ("name", "more_than", "least"), [("llama3-70b", 8, 24), ("gpt3-175b", 7, 48)]
)
def test_the_least_gpus_that_hold_a_model(name: str, more_than: int, least: int) -> None:
    base = TrainingSetup(SHAPES[name], Layout(), 512)
    assert least_gpus(base, H100, more_than, ANY) == least
    assert search(base, H100, least, ANY).best is not None
    for fewer in range(8, least, 8):
        assert search(base, H100, fewer, ANY).best is None


def test_more_than_so_many_are_looked_for() -> None:
    assert least_gpus(EIGHT, H100, 8, ANY) == 16
    assert least_gpus(EIGHT, H100, 20, ANY) == 24


def test_too_few_allowed_are_none() -> None:
    base = TrainingSetup(SHAPES["llama3.1-405b"], Layout(), 512)
    assert least_gpus(base, H100, 8, ANY, limit=96) is None


def test_what_fits_is_what_the_search_finds() -> None:
    base = TrainingSetup(SHAPES["llama3-70b"], Layout(), 512)
    for gpus in (8, 16, 24, 30, 32):
        assert any_layout_fits(base, H100, gpus, ANY) == (
            search(base, H100, gpus, ANY).best is not None
        )


@pytest.mark.parametrize(("days", "least"), [(30, 48), (20, 72)])
def test_a_deadline_finds_the_least_gpus(days: float, least: int) -> None:
    gpus, found = gpus_for_deadline(EIGHT, H100, 10**12, days, ANY)
    assert gpus == least
    assert found.best is not None
    assert 10**12 / found.best.tokens_per_second <= days * 86400
    assert gpus // 8 <= WINDOW
    for fewer in range(least - 24, least, 8):
        best = search(EIGHT, H100, fewer, ANY).best
        assert best is None or 10**12 / best.tokens_per_second > days * 86400


def test_a_batch_that_is_given_is_kept() -> None:
    _, found = gpus_for_deadline(EIGHT, H100, 10**12, 30, SearchSpace())
    assert found.best is not None
    assert found.best.setup.global_batch == 512


@pytest.mark.parametrize(
    ("days", "space"),
    [(1e-300, ANY), (0.001, SearchSpace())],
    ids=["any batch", "this batch"],
)
def test_the_deadline_that_is_named_works_when_asked_for(days: float, space: SearchSpace) -> None:
    with pytest.raises(PlanError, match=f"in {days:g} days") as refused:
        gpus_for_deadline(EIGHT, H100, 10**12, days, space, limit=64)
    named = re.search(r"a deadline of ([0-9.e+-]+) days", refused.value.remedy)
    assert named is not None
    gpus, found = gpus_for_deadline(EIGHT, H100, 10**12, float(named[1]), space, limit=64)
    assert gpus <= 64
    assert found.best is not None


def test_no_deadline_is_named_where_nothing_fits() -> None:
    base = TrainingSetup(SHAPES["llama3.1-405b"], Layout(), 512)
    with pytest.raises(PlanError, match="nothing fits however long it takes"):
        gpus_for_deadline(base, H100, 10**12, 1.0, ANY, limit=16)


def test_the_nearest_batch_fits_and_none_nearer_does() -> None:
    base = replace(EIGHT, global_batch=7)
    batch = nearest_batch(base, H100, 1024, 10**6)
    assert batch == 16
    capacity = int(H100.memory.value)
    for nearer in range(1, 16):
        found = search(replace(base, global_batch=nearer), H100, 1024)
        assert found.best is None or found.best.memory.total > capacity
    best = search(replace(base, global_batch=batch), H100, 1024).best
    assert best is not None
    assert memory(best.setup, capacity).fits


def test_no_batch_is_named_that_is_larger_than_the_run() -> None:
    assert nearest_batch(replace(EIGHT, global_batch=7), H100, 1024, 15) is None


def test_the_most_gpus_that_can_split_a_batch() -> None:
    base = replace(EIGHT, global_batch=7)
    fewer = nearest_smaller(base, H100, 1024, SearchSpace())
    assert fewer is not None
    assert fewer < 1024
    assert search(base, H100, fewer).best is not None
