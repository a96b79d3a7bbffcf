"""The whole plan: its JSON, its agreement with the parts, and questions without an answer."""

from __future__ import annotations

import json
from copy import deepcopy
from math import prod
from typing import Any

import pytest
import yaml

from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.plan import Plan, PlanRequest, plan
from llmtrain_core.forecast.plan_json import plan_to_wire
from llmtrain_core.placement import Placement
from llmtrain_core.plan.hardware import CATALOGUE, accelerator
from llmtrain_core.plan.memory.training_memory import format_bytes, memory
from llmtrain_core.plan.model.model_shape import shape_named
from llmtrain_core.plan.search.supported import space_of
from llmtrain_core.plan.time.goodput import Failures
from llmtrain_core.topology.levels import FabricLevel
from llmtrain_core.validation.check import Job, check
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]
KEYS = {
    "parameters",
    "activeParameters",
    "trainableParameters",
    "flopsPerToken",
    "totalFlops",
    "memory",
    "communication",
    "bubble",
    "step",
    "mfu",
    "tokensPerSecond",
    "days",
    "gpus",
    "storage",
    "cost",
    "alternatives",
    "assumptions",
    "hardware",
    "recipe",
}


def _spec(**changes: Any) -> dict[str, Any]:
    document = yaml.safe_load((EXAMPLES / "llama3-8b.yaml").read_text())
    spec: dict[str, Any] = deepcopy(document["spec"])
    for section, values in changes.items():
        spec[section].update(values)
    return spec


def _job(**changes: Any) -> Job:
    job = check("example", _spec(**changes))
    assert isinstance(job, Job), job
    return job


@pytest.fixture(scope="module")
def example() -> Plan:
    return plan(_job(), H100)


def test_json_has_exactly_these_keys(example: Plan) -> None:
    wire = plan_to_wire(example)
    assert set(wire) == KEYS
    assert set(wire["memory"]) == {"perGpuBytes", "fits"}
    assert set(wire["step"]) == {"seconds", "computeSeconds", "exposed", "collectives"}
    assert set(wire["flopsPerToken"]) == {"fullAttention", "causalAttention"}
    for group in wire["communication"].values():
        assert set(group) == {"bytesPerStep", "wireBytesPerStep", "operations"}


def test_the_two_reference_formulas(example: Plan) -> None:
    """Llama 3 8B at 8,192: Megatron-Bridge's table gives 51.48, Megatron-LM's example 57.9."""
    per_token = plan_to_wire(example)["flopsPerToken"]
    assert per_token["causalAttention"] == pytest.approx(744e12 / 14451, rel=1e-3)
    assert per_token["fullAttention"] == pytest.approx(800e12 / 13812, rel=1e-3)
    assert round(per_token["causalAttention"] / 1e9, 1) == 51.5
    assert round(per_token["fullAttention"] / 1e9, 1) == 57.9


def test_figures_agree_with_each_other(example: Plan) -> None:
    wire = plan_to_wire(example)
    assert wire["gpus"] == 64
    assert wire["parameters"] == 8_030_261_248
    assert wire["totalFlops"] == wire["flopsPerToken"]["causalAttention"] * example.tokens
    assert example.tokens == pytest.approx(10**12, rel=1e-4)
    tokens_per_step = 1024 * 8192
    assert wire["tokensPerSecond"] == pytest.approx(tokens_per_step / wire["step"]["seconds"])
    assert wire["days"] == pytest.approx(example.tokens / wire["tokensPerSecond"] / 86400)
    rate = wire["flopsPerToken"]["causalAttention"] * wire["tokensPerSecond"]
    assert wire["mfu"] == pytest.approx(rate / (64 * 989e12))
    assert wire["cost"]["gpuHours"] == pytest.approx(
        64 * 24 * wire["cost"]["daysWithFailures"], rel=1e-6
    )
    assert sum(wire["memory"]["perGpuBytes"].values()) == memory(example.setup).total


def test_alternatives_of_a_job_are_what_this_release_runs(example: Plan) -> None:
    assert example.alternatives
    for other in plan_to_wire(example)["alternatives"]:
        spec = _spec()
        spec["parallelism"] = other["parallelism"]
        spec["training"]["microBatchSize"] = other["microBatchSize"]
        spec["training"]["activationCheckpointing"] = other["activationCheckpointing"]
        assert isinstance(check("example", spec), Job)
        assert other["perGpuBytes"] <= H100.memory.value
        assert other["globalBatchSize"] == 1024


def test_the_space_follows_what_the_release_supports() -> None:
    space = space_of(_job().spec)
    assert "1F1B" in space.schedules
    refused = _spec(parallelism={"context": 2, "data": 4})
    assert space.context == isinstance(check("example", refused), Job)


def test_another_number_of_gpus_changes_the_data_degree(example: Plan) -> None:
    double = plan(_job(), H100, 128)
    assert (double.gpus, double.setup.layout.data) == (128, 16)
    assert double.days < example.days


def test_a_placement_across_tight_uplinks_is_slower(example: Plan) -> None:
    levels = (FabricLevel("leaf", "l", 8.0), FabricLevel("node", "n"))
    crossing = Placement((), {}, {"leaf": {"data": 4, "pipeline": 8}}, "")
    aligned = Placement((), {}, {"leaf": {"data": 0, "pipeline": 0}}, "")
    slow = plan(_job(), H100, placement=crossing, levels=levels)
    fast = plan(_job(), H100, placement=aligned, levels=levels)
    assert slow.time.seconds > fast.time.seconds == example.time.seconds
    assert not any("no placement" in note for note in fast.assumptions)


def test_a_job_over_memory_is_planned_but_does_not_fit() -> None:
    job = _job(
        model={"preset": "llama3-70b"},
        training={"activationCheckpointing": "none", "microBatchSize": 8},
        parallelism={"tensor": 8, "pipeline": 1},
    )
    found = plan(job, H100)
    assert not found.memory.fits
    assert plan_to_wire(found)["memory"]["fits"] is False


def test_a_model_and_tokens_choose_layout_and_batch() -> None:
    found = plan(PlanRequest(shape_named("llama3-70b"), 15 * 10**12), H100, 1024)
    assert found.memory.fits
    assert found.gpus == 1024
    assert 2**21 < found.setup.tokens_per_step < 2**23
    assert 0.2 < found.mfu < 0.7
    assert found.alternatives


def test_a_deadline_chooses_the_gpus() -> None:
    found = plan(PlanRequest(shape_named("llama3-8b"), 10**12, days=30), H100)
    assert found.days <= 30
    assert found.gpus % 8 == 0


def test_json_has_the_plan_that_was_chosen() -> None:
    found = plan(PlanRequest(shape_named("gpt3-175b"), 300 * 10**9), accelerator("V100"), 10000)
    wire = plan_to_wire(found)
    assert wire["hardware"] == "V100"
    chosen, setup = wire["recipe"], found.setup
    assert set(chosen) == set(wire["alternatives"][0])
    assert chosen["parallelism"]["tensor"] == setup.layout.tensor
    assert chosen["parallelism"]["pipelineSchedule"] == setup.schedule
    assert chosen["globalBatchSize"] == setup.global_batch
    assert chosen["microBatchSize"] == setup.micro_batch
    assert chosen["activationCheckpointing"] == setup.checkpointing
    assert chosen["perGpuBytes"] == sum(wire["memory"]["perGpuBytes"].values())
    assert chosen["tokensPerSecond"] == wire["tokensPerSecond"]
    degrees = [
        n
        for key, n in chosen["parallelism"].items()
        if key not in ("pipelineSchedule", "virtualStages", "expert")
    ]
    assert prod(degrees) == wire["gpus"] == 10000


def test_a_run_that_never_finishes_has_no_cost() -> None:
    request = PlanRequest(shape_named("llama3-8b"), 10**12)
    never = plan(request, H100, 64, failures=Failures(per_node_day=1000.0))
    assert never.cost is None
    wire = plan_to_wire(never)
    assert wire["cost"]["goodput"] == 0
    nothing = ("gpuHours", "energyKilowattHours", "dollars", "daysWithFailures")
    assert all(wire["cost"][key] is None for key in nothing)
    json.dumps(wire, allow_nan=False)


def test_a_run_without_failures_never_needs_to_save() -> None:
    request = PlanRequest(shape_named("llama3-8b"), 10**12)
    found = plan(request, H100, 64, failures=Failures(per_node_day=0.0))
    wire = plan_to_wire(found)
    assert wire["storage"]["checkpointIntervalSeconds"] is None
    assert wire["cost"]["daysWithFailures"] == wire["days"]
    assert any(note.startswith("failures: 0 per node and day") for note in found.assumptions)
    json.dumps(wire, allow_nan=False)


def test_a_short_run_takes_a_batch_that_it_has_tokens_for() -> None:
    found = plan(PlanRequest(shape_named("llama3-8b"), 10**6), H100, 8)
    assert found.setup.tokens_per_step <= 10**6


def test_servers_of_the_job_bound_the_fast_domain() -> None:
    job = _job(workers={"gpusPerNode": 4})
    assert plan(job, H100).hardware.domain.value == 4


SEVENTY = PlanRequest(shape_named("llama3-70b"), 10**12)
NONSENSE = [
    (lambda: plan(SEVENTY, H100, 0), "0 GPUs are not between 1 and 524288; use 1"),
    (lambda: plan(SEVENTY, H100, -3), "-3 GPUs are not between 1"),
    (lambda: plan(SEVENTY, H100, 10**9), "use 524288"),
    (lambda: plan(SEVENTY, H100), "use --gpus N or --days D"),
    (
        lambda: plan(PlanRequest(shape_named("llama3-8b"), int(1e30)), H100, 8),
        r"1e\+15; use 1e\+15",
    ),
    (lambda: plan(PlanRequest(shape_named("llama3-8b"), 0), H100, 8), "0 tokens are not between"),
    (lambda: plan(SEVENTY, H100, 8), "nothing fits H100's 79.6 GiB.*use at least 24 H100"),
    (lambda: plan(SEVENTY, accelerator("h1000"), 8), "no GPU is named 'h1000'; did you mean H100"),
    (lambda: shape_named("lama3-8b"), "did you mean llama3-8b"),
    (lambda: plan(_job(), H100, 100), "100 GPUs are not a multiple of the layout's 8.*use 96"),
    (
        lambda: plan(PlanRequest(shape_named("llama3-8b"), 10**12, days=1e-6), H100),
        "use a deadline of [0-9.]+ days or more",
    ),
    (
        lambda: plan(PlanRequest(shape_named("tiny"), 10**9, 3), H100, 1024),
        "no layout of 1024 GPUs can run this: a batch of 3 sequences cannot be split into"
        " micro-batches of 1 over 1024 data ranks;.*; use a batch of 512 or use 6 GPUs",
    ),
    (
        lambda: PlanRequest(shape_named("llama3-8b"), 10**12, 10**12),
        "larger than the run: .* 122,070,312 sequences of 8,192; use a batch of at most 122070312",
    ),
    (
        lambda: PlanRequest(shape_named("llama3-8b"), 8191),
        "8,191 tokens are less than one sequence",
    ),
    (
        lambda: shape_named("gpt3-175b").with_length(100_000),
        "100,000 tokens are longer than the model's 2,048 learned positions; use at most 2048",
    ),
]


@pytest.mark.parametrize(("ask", "words"), NONSENSE)
def test_nonsense_names_the_limit_and_the_nearest_choice(ask: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        ask()
    assert caught.value.remedy


def test_a_trainer_of_other_make_cannot_be_planned() -> None:
    document = yaml.safe_load((EXAMPLES / "bring-your-own-trainer.yaml").read_text())
    job = check("other", document["spec"])
    assert isinstance(job, Job)
    with pytest.raises(PlanError, match="names no model or training"):
        plan(job, H100)


def test_sizes_as_text() -> None:
    assert [format_bytes(n) for n in (12, 3 * 2**10, 5 * 2**20, 80 * 2**30)] == [
        "12.0 B",
        "3.0 KiB",
        "5.0 MiB",
        "80.0 GiB",
    ]
