"""Step time: the parts add up, and every lever moves it the right way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import Schedule
from llmtrain_core.placement import Placement
from llmtrain_core.placement.place import describe
from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.hardware import CATALOGUE, accelerator
from llmtrain_core.plan.model.flops import training_flops_per_token
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.network.communication import CommunicationVolumes, Group, communication
from llmtrain_core.plan.network.link_speed import (
    LINK_LATENCY,
    CollectiveCostModel,
    uplink_slowdowns,
)
from llmtrain_core.plan.time.step_time import collective_seconds, layer_weights, step_time
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import FabricLevel

pytestmark = pytest.mark.unit

H100 = CATALOGUE["H100"]
CONSTANTS = constants_of("H100")
BASE = TrainingSetup(
    SHAPES["llama3-8b"], Layout(tensor=2, pipeline=2, data=16), 512, kernels="fused"
)


def _seconds(setup: TrainingSetup, hardware: str = "H100") -> float:
    return step_time(setup, CATALOGUE[hardware], constants_of(hardware)).seconds


def test_parts_add_up_to_the_step() -> None:
    time = step_time(BASE, H100, CONSTANTS)
    assert time.seconds == pytest.approx(time.compute + time.bubble + sum(time.exposed.values()))
    assert time.bubble > 0


def test_a_stage_between_the_ends_can_be_the_slowest() -> None:
    """It sends activations on and gradients back; of four equal stages two do, of two none."""
    shape = replace(SHAPES["llama3-8b"], vocab_size=256)
    sent = {}
    for pipeline in (2, 4):
        setup = TrainingSetup(shape, Layout(pipeline=pipeline), 8, kernels="fused")
        sent[pipeline] = step_time(setup, H100, CONSTANTS).exposed["pp"]
    assert sent[4] == pytest.approx(2 * sent[2], rel=0.01)


@pytest.mark.parametrize(("schedule", "chunks"), [("1F1B", 1), ("ZBVZeroBubble", 2)])
def test_every_kind_of_stage_is_asked(schedule: Schedule, chunks: int) -> None:
    """22 layers in 16 stages: the first six have two, and one of them lies between the ends."""
    shape = replace(SHAPES["llama3-8b"], layers=22 * chunks)
    setup = TrainingSetup(shape, Layout(pipeline=16), 32, schedule=schedule, chunks=chunks)
    asked = {(setup.stages[rank], rank in (0, 15)) for rank in setup.kinds}
    assert asked == {(stage, rank in (0, 15)) for rank, stage in enumerate(setup.stages)}


def test_utilisation_stays_below_the_efficiency_of_products() -> None:
    for name in ("llama3-8b", "llama3-70b", "llama3.1-405b"):
        setup = replace(BASE, shape=SHAPES[name])
        flops = training_flops_per_token(setup.shape, "causal-attention") * setup.tokens_per_step
        assert flops / (_seconds(setup) * H100.peak("bfloat16") * 64) < 0.6875


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        (replace(BASE, kernels="eager"), BASE),
        (replace(BASE, checkpointing="full"), replace(BASE, checkpointing="selective")),
        (replace(BASE, checkpointing="selective"), BASE),
        (BASE, replace(BASE, precision="float8")),
        (BASE, replace(BASE, overlaps_tensor=True)),
        (replace(BASE, flash_attention=False), BASE),
        (replace(BASE, overlaps_data=False), BASE),
        (BASE, replace(BASE, schedule="ZBVZeroBubble", chunks=2)),
        (replace(BASE, layout=Layout(tensor=8, data=8)), replace(BASE, layout=Layout(data=64))),
        (
            replace(
                BASE,
                layout=Layout(tensor=16, data=4),
                shape=replace(BASE.shape, kv_heads=16, heads=32),
            ),
            replace(
                BASE,
                layout=Layout(tensor=8, data=8),
                shape=replace(BASE.shape, kv_heads=16, heads=32),
            ),
        ),
    ],
    ids=[
        "eager",
        "full",
        "selective",
        "float8",
        "async tensor",
        "scores in memory",
        "data not overlapped",
        "zero bubble",
        "tensor",
        "tensor across servers",
    ],
)
def test_each_lever_moves_the_step_the_right_way(
    slower: TrainingSetup, faster: TrainingSetup
) -> None:
    assert _seconds(slower) > _seconds(faster)


def test_twice_the_batch_takes_less_than_twice_the_time() -> None:
    once, twice = _seconds(BASE), _seconds(replace(BASE, global_batch=1024))
    assert 1.8 * once < twice < 2 * once


def test_newer_gpus_are_faster() -> None:
    times = [_seconds(BASE, name) for name in ("V100", "A100-80", "H100", "B200", "GB300")]
    assert times == sorted(times, reverse=True)


def test_a_precision_without_units_is_refused_and_names_the_others() -> None:
    with pytest.raises(PlanError, match="V100 has no float8 matrix units; use one of bfloat16"):
        _seconds(replace(BASE, precision="float8"), "V100")


def test_a_ring_inside_a_server_and_across() -> None:
    """(n - 1) / n of the payload over the slower of NVLink and the group's own interfaces."""
    network = CollectiveCostModel(H100, Layout(data=16), 1.0, 1.0)
    assert (network.span("dp").per_domain, network.span("dp").domains) == (8, 2)
    payload = 1e9
    across = payload * 0.5 / (8 * 50e9)
    inside = payload * 15 / 16 / 450e9
    assert inside > across
    found = network.seconds("dp", "all_gather", payload)
    assert found == pytest.approx(inside + 7 * LINK_LATENCY + 9.6e-6)
    assert network.seconds("dp", "all_reduce", payload) == pytest.approx(2 * found)
    near = CollectiveCostModel(H100, Layout(tensor=8), 1.0, 1.0)
    assert near.seconds("tp", "all_gather", payload) == pytest.approx(
        payload * 7 / 8 / 450e9 + 7 * LINK_LATENCY
    )


def test_rows_to_experts_leave_a_server_through_the_interface_of_their_own_rank() -> None:
    network = CollectiveCostModel(H100, Layout(data=32, expert=16), 1.0, 1.0)
    assert (network.span("ep").per_domain, network.span("ep").domains) == (8, 2)
    assert (network.span("edp").ranks, network.span("edp").per_domain) == (2, 1)
    found = network.seconds("ep", "all_to_all", 1e9)
    assert found == pytest.approx(1e9 * 0.5 / 50e9 + 7 * LINK_LATENCY + 9.6e-6)


@pytest.mark.parametrize("name", ["llama3-8b", "mixtral-8x7b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("expert", [1, 2, 8])
def test_a_layer_multiplies_what_a_token_meets(name: str, expert: int) -> None:
    """Whatever the number of ranks that the experts are dealt out over, if they are evenly used."""
    shape = SHAPES[name]
    count = count_parameters(shape)
    layers = shape.layers * sum(layer_weights(shape, expert))
    assert layers == pytest.approx(count.multiplied - count.output - count.norms)


def test_the_span_of_a_group_follows_its_stride() -> None:
    network = CollectiveCostModel(H100, Layout(tensor=4, data=8, pipeline=2), 1.0, 1.0)
    assert (network.span("dp").per_domain, network.span("dp").domains) == (2, 4)
    assert (network.span("pp").per_domain, network.span("pp").domains) == (1, 2)


def test_a_rack_of_nvlink_is_one_domain() -> None:
    network = CollectiveCostModel(accelerator("GB200"), Layout(tensor=8, data=8), 1.0, 1.0)
    assert network.span("dp").domains == 1


def test_uplinks_slow_only_the_groups_that_cross_them() -> None:
    levels = (
        FabricLevel("spine", "s", 7.0),
        FabricLevel("leaf", "l", 2.0),
        FabricLevel("node", "n"),
    )
    placement = Placement(
        (),
        {},
        {"spine": {"pipeline": 4}, "leaf": {"pipeline": 4, "data": 2}, "node": {"data": 2}},
        "",
    )
    assert uplink_slowdowns(placement.crossings, levels) == {
        "pp": 14.0,
        "dp": 2.0,
        "ep": 2.0,
        "edp": 2.0,
    }
    assert uplink_slowdowns({}, levels) == {}


def test_uplinks_slow_fsdp_over_context_ranks_as_fsdp_over_data_ranks() -> None:
    """Four nodes that alternate between two leaves; eight micro-batches in both layouts."""
    levels = (FabricLevel("leaf", "l", 4.0), FabricLevel("node", "n"))
    paths = [(leaf, f"n{node}") for node, leaf in enumerate("abab")]
    raw: list[tuple[float, float]] = []
    for layout, batch, near, far in (
        (Layout(tensor=8, context=4), 8, 0.0664, 1.069),
        (Layout(tensor=8, data=4), 8, 0.0351, 0.444),
        (Layout(tensor=8, data=4), 32, 0.0411, 0.469),
    ):
        setup = TrainingSetup(SHAPES["llama3-8b"], layout, batch)
        crossings = describe(layout, 8, Snapshot(levels, ()), paths).crossings
        assert crossings["leaf"]["data"] == 8
        slowed = uplink_slowdowns(crossings, levels)
        assert step_time(setup, H100, CONSTANTS).exposed["dp"] == pytest.approx(near, rel=0.01)
        tight = step_time(setup, H100, CONSTANTS, slowed).exposed["dp"]
        assert tight == pytest.approx(far, rel=0.01)
        calls = communication(setup)
        raw.append((_fsdp_seconds(calls, layout), _fsdp_seconds(calls, layout, slowed)))
    assert raw[0] == pytest.approx(raw[2])
    assert raw[0][1] == pytest.approx(4 * raw[0][0], rel=0.02)  # latency stays


def test_time_in_collectives_is_that_of_the_calls_that_the_trainer_times() -> None:
    """Overlapping calls count, sums of the loss and transfers of the pipeline do not."""
    found = collective_seconds(BASE, H100, CONSTANTS)
    calls = communication(BASE)
    assert {group for group, _ in calls} == {"tp", "dp", "pp"}
    assert set(found) == {"tp", "dp"}
    # The wire alone, without the losses of the links.
    assert found["dp"] == pytest.approx(_fsdp_seconds(calls, BASE.layout), rel=0.2)
    hidden = step_time(BASE, H100, CONSTANTS).exposed["dp"]
    assert found["dp"] > hidden
    slowed = collective_seconds(BASE, H100, CONSTANTS, {"dp": 4.0})
    assert slowed["tp"] == found["tp"] and slowed["dp"] > 3 * found["dp"]


def test_only_groups_with_several_ranks_have_time_in_collectives() -> None:
    alone = TrainingSetup(SHAPES["llama3-8b"], Layout(pipeline=2), 8)
    assert collective_seconds(alone, H100, CONSTANTS) == {}
    copies = replace(BASE, layout=Layout(tensor=2, data=4, replicate=2), sharding="fsdp2")
    assert set(collective_seconds(copies, H100, CONSTANTS)) == {"tp", "dp", "rep"}


def _fsdp_seconds(
    calls: CommunicationVolumes, layout: Layout, slowed: Mapping[Group, float] | None = None
) -> float:
    network = CollectiveCostModel(H100, layout, 1.0, 1.0, slowed or {})
    return sum(
        network.seconds(group, operation, each.nbytes, each.count)
        for (group, operation), each in calls.items()
        if group == "dp"
    )


def test_the_wrong_dimension_across_slow_uplinks_costs_the_most() -> None:
    """Pipeline across is best, tensor across is worst: the order that was measured."""
    setup = TrainingSetup(
        SHAPES["llama3-70b"], Layout(tensor=8, pipeline=4, data=4), 64, kernels="fused"
    )
    small = replace(H100, domain=replace(H100.domain, value=1))
    times = {
        group: step_time(setup, small, CONSTANTS, {group: 4.0}).seconds  # type: ignore[dict-item]
        for group in ("pp", "dp", "tp")
    }
    assert times["pp"] < times["dp"] < times["tp"]
