"""CPU step time: work is additive over ranks, and fitting finds the prices it was made from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.plan.cpu.cost_model import (
    WORK_KINDS,
    CpuCostModel,
    Measurement,
    add_work,
    collective_work,
    cpu_step_time,
    fit,
    rank_work,
)
from llmtrain_core.plan.model.flops import training_flops_per_token
from llmtrain_core.plan.model.model_shape import ModelShape
from llmtrain_core.plan.training_setup import TrainingSetup

pytestmark = pytest.mark.unit

SHAPE = ModelShape(
    layers=4,
    hidden_size=64,
    heads=4,
    kv_heads=2,
    head_width=16,
    ffn_size=176,
    vocab_size=512,
    sequence_length=32,
)
LAYOUTS = tuple(
    Layout(tensor=tensor, pipeline=pipeline, data=data)
    for tensor in (1, 2)
    for pipeline in (1, 2)
    for data in (1, 2)
)
SETUPS = tuple(
    TrainingSetup(replace(SHAPE, layers=layers), layout, batch, precision="float32")
    for layout in LAYOUTS
    for layers in (2, 6)
    for batch in (4, 16)
)
EVEN = CpuCostModel(2, dict.fromkeys(WORK_KINDS, 1e-3))


def whole(setup: TrainingSetup) -> dict[str, float]:
    pipeline = setup.layout.pipeline
    each = setup.layout.world_size // pipeline
    stages = add_work(*(rank_work(setup, rank) for rank in range(pipeline)))
    return {kind: each * amount for kind, amount in stages.items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_arithmetic_is_the_same_in_every_layout(layout: Layout) -> None:
    work = whole(TrainingSetup(SHAPE, layout, 8, precision="float32"))
    flops = training_flops_per_token(SHAPE, "causal-attention") * 8 * SHAPE.sequence_length
    norms = 6 * 8 * SHAPE.sequence_length * (2 * SHAPE.layers + 1) * SHAPE.hidden_size
    assert work["products"] + work["attention"] == pytest.approx(flops - norms)


def test_recomputing_repeats_a_forward_pass() -> None:
    once = TrainingSetup(SHAPE, Layout(), 8, precision="float32")
    twice = rank_work(replace(once, checkpointing="full"), 0)
    assert twice["layers"] == pytest.approx(4 / 3 * rank_work(once, 0)["layers"])


def test_messages_of_rings() -> None:
    assert collective_work("all_gather", 4, 10, 4000) == {
        "calls": 10,
        "gatherHops": 30,
        "bytes": 3000,
    }
    assert collective_work("all_reduce", 4, 10, 4000) == {
        "calls": 10,
        "reduceHops": 60,
        "bytes": 6000,
    }


def test_fitted_prices_predict_what_was_not_measured() -> None:
    true = CpuCostModel(2, {kind: (i + 1) * 1e-4 for i, kind in enumerate(WORK_KINDS)})
    measured = [Measurement(whole(r), true.seconds(whole(r))) for r in SETUPS]
    for hidden in (0, 9, 31):
        seen = [m for index, m in enumerate(measured) if index != hidden]
        found = fit(seen, 2).seconds(measured[hidden].work)
        assert found == pytest.approx(measured[hidden].seconds, rel=0.01)


def test_a_price_is_never_negative() -> None:
    found = fit([Measurement({"steps": 1, "passes": n}, 5 - n) for n in (1, 2, 3)], 2)
    assert min(found.prices.values()) >= 0


def test_wall_time_is_bound_by_cores_or_by_the_pipeline() -> None:
    setup = TrainingSetup(SHAPE, Layout(pipeline=2), 4, precision="float32")
    few, many = cpu_step_time(setup, replace(EVEN, cores=1)), cpu_step_time(setup, EVEN)
    assert few.wall_seconds == pytest.approx(few.cpu_seconds)
    # two stages, four micro-batches: a fifth of the step is the bubble
    assert many.wall_seconds == pytest.approx(max(many.cpu) * 1.25)


def test_a_calibration_survives_its_file_and_nothing_else_is_one() -> None:
    assert CpuCostModel.from_wire(EVEN.to_wire()) == EVEN
    broken: tuple[object, ...] = (
        {},
        None,
        {"cores": 2, "cpuSeconds": {**EVEN.prices, "steps": -1}},
        {"cores": 1},
    )
    for document in broken:
        with pytest.raises(PlanError, match="calibrate this machine again"):
            CpuCostModel.from_wire(document)


def test_what_is_not_calibrated_is_refused() -> None:
    good = TrainingSetup(SHAPE, Layout(), 8, precision="float32")
    for bad in (
        replace(good, precision="bfloat16"),
        replace(good, layout=Layout(context=2)),
        replace(good, checkpointing="selective"),
        replace(good, kernels="compiled"),
        replace(good, layout=Layout(pipeline=2), schedule="Interleaved1F1B", chunks=2),
    ):
        with pytest.raises(PlanError, match="not calibrated"):
            cpu_step_time(bad, EVEN)
