"""The outline and the prediction are the plan's own figures, and cost little."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import yaml

from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.plan import plan
from llmtrain_core.forecast.plan_json import outline_to_wire, plan_to_wire, prediction_to_wire
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.network.link_speed import uplink_slowdowns
from llmtrain_core.plan.time.predict import outline, predict, tokens_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.levels import FabricLevel
from llmtrain_core.validation.check import Job, check
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]
EXAMPLE = EXAMPLES / "llama3-8b.yaml"


def _job() -> Job:
    job = check("example", yaml.safe_load(EXAMPLE.read_text())["spec"])
    assert isinstance(job, Job), job
    return job


def test_a_prediction_is_part_of_the_plan() -> None:
    job = _job()
    setup = TrainingSetup.of(job)
    whole = plan_to_wire(plan(job, H100))
    part = prediction_to_wire(predict(setup, H100, tokens_of(job, setup)))
    assert part.pop("assumptions") == whole.pop("assumptions")[:4]
    assert part.items() <= whole.items()


def test_an_outline_needs_no_hardware() -> None:
    job = _job()
    setup = TrainingSetup.of(job)
    tokens = tokens_of(job, setup)
    wire, whole = outline_to_wire(outline(setup, tokens)), plan_to_wire(plan(job, H100))
    assert wire["memory"]["perGpuBytes"] == whole["memory"]["perGpuBytes"]
    for key in ("parameters", "flopsPerToken", "totalFlops", "bubble", "gpus"):
        assert wire[key] == whole[key]


def test_uplinks_that_are_crossed_slow_the_step() -> None:
    job = _job()
    setup = TrainingSetup.of(job)
    levels = (FabricLevel("spine", "spine", 8.0), FabricLevel("node", "node"))
    free = predict(setup, H100, 10**9, {})
    crossed = uplink_slowdowns({"spine": {"data": 4}}, levels)
    tight = predict(setup, H100, 10**9, crossed)
    assert tight.time.exposed["dp"] > free.time.exposed["dp"]
    assert tight.seconds > free.seconds
    assert tight.time.compute == free.time.compute


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    setup = TrainingSetup.of(_job())
    with pytest.raises(PlanError, match="float8"):
        predict(replace(setup, precision="float8"), CATALOGUE["A100-80"], 10**9)


def test_predicting_is_far_cheaper_than_searching() -> None:
    job = _job()
    setup = TrainingSetup.of(job)
    plan(job, H100)
    started = time.process_time()
    for _ in range(20):
        predict(setup, H100, 10**9)
    cheap = (time.process_time() - started) / 20
    started = time.process_time()
    plan(job, H100)
    assert cheap < (time.process_time() - started) / 20
