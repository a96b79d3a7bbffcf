"""Volumes: against hand counts, against the trainer's own meter, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.plan.network.communication import (
    CollectiveCalls,
    bytes_per_step,
    communication,
    stage_communication,
)
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check
from tests.support.covering import cover, pairs, selected, union
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.ranks import run_world

unit = pytest.mark.unit
LLAMA = SHAPES["llama3-8b"]


def _full(**changes: Any) -> dict[str, Any]:
    return {"activationCheckpointing": "full", **changes}


def _lora(*targets: str, **changes: Any) -> dict[str, Any]:
    """A rank that the data ranks do not divide."""
    lora = {"rank": 3, "targets": list(targets)}
    return {"init_from": "file:///nowhere", "training": {"lora": lora, **changes}}


EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TWO_CHUNKS = {"pipeline": 2, "virtualStages": 2, "training": {"microBatchSize": 1}}
GPT = {"kvHeads": 4, "positions": "learned", "norm": "layer", "activation": "gelu", "biases": "all"}
TIED = {"tiedEmbeddings": True}
MOE = {"experts": 4, "expertsPerToken": 2}

CASES: list[dict[str, Any]] = [
    {"data": 2},
    {"data": 3, "training": {"globalBatchSize": 6}},
    {"data": 2, "training": _full(globalBatchSize=16)},
    {"data": 2, "training": {"activationCheckpointing": "selective"}},
    {"tensor": 2},
    {"tensor": 2, "training": _full()},
    {"tensor": 2, "training": {"activationCheckpointing": "selective"}},
    {"tensor": 2, "architecture": GPT},
    {"tensor": 2, "architecture": {"qkNorm": True, "biases": "qkv"}},
    {"pipeline": 2},
    {"pipeline": 2, "architecture": {"layers": 3}},
    {"tensor": 2, "data": 2},
    {"pipeline": 2, "data": 2},
    {"tensor": 2, "pipeline": 2},
    {"replicate": 2},
    {"replicate": 2, "data": 2},
    {"replicate": 2, "tensor": 2},
    {"replicate": 2, "pipeline": 2},
    {"replicate": 2, "data": 2, "training": {"gradientSync": {"compression": "int8"}}},
    {"replicate": 2, "training": {"gradientSync": {"compression": "bf16"}}},
    {"replicate": 4, "training": {"gradientSync": {"copiesPerRack": 2}}},
    {"replicate": 4, "training": {"gradientSync": {"copiesPerRack": 2, "compression": "int8"}}},
    {
        "replicate": 4,
        "training": {
            "gradientSync": {"copiesPerRack": 2},
            "communication": {"overlap": True, "chunks": 2},
        },
    },
    {
        "replicate": 2,
        "data": 2,
        "architecture": MOE,
        "training": {"communication": {"overlap": True, "bucketSize": "30k"}},
    },
    {
        **TWO_CHUNKS,
        "pipelineSchedule": "DualPipeV",
        "replicate": 2,
        "training": {"microBatchSize": 1, "gradientSync": {"compression": "int8"}},
    },
    {"context": 2},
    {"context": 2, "training": _full()},
    {"context": 2, "tensor": 2},
    {"context": 2, "data": 2},
    {"context": 2, "pipeline": 2},
    {**TWO_CHUNKS, "pipelineSchedule": "Interleaved1F1B", "data": 2},
    {**TWO_CHUNKS, "pipelineSchedule": "Interleaved1F1B", "architecture": {"layers": 5}},
    {
        "pipeline": 2,
        "virtualStages": 4,
        "pipelineSchedule": "LoopedBFS",
        "architecture": {"layers": 8},
    },
    {**TWO_CHUNKS, "pipelineSchedule": "InterleavedZeroBubble", "tensor": 2},
    {**TWO_CHUNKS, "pipelineSchedule": "ZBVZeroBubble", "tensor": 2},
    {
        **TWO_CHUNKS,
        "pipelineSchedule": "ZBVZeroBubble",
        "tensor": 2,
        "training": _full(microBatchSize=1),
    },
    {**TWO_CHUNKS, "pipelineSchedule": "ZBVZeroBubble", "context": 2},
    {**TWO_CHUNKS, "pipelineSchedule": "DualPipeV", "data": 2},
    {**TWO_CHUNKS, "pipelineSchedule": "DualPipeV", "architecture": {"layers": 7}},
    {"data": 2, **_lora("q_proj", "v_proj")},
    {"tensor": 2, **_lora(*EVERY)},
    {"tensor": 2, **_lora("o_proj", **_full())},
    {"tensor": 2, **_lora("down_proj")},
    {"context": 2, **_lora("v_proj", "up_proj")},
    {"replicate": 2, **_lora("k_proj")},
    {"pipeline": 2, **_lora("q_proj", "down_proj")},
    {"pipeline": 2, "tensor": 2, **_lora("gate_proj")},
    {"pipeline": 2, "data": 2, "architecture": TIED},
    {**TWO_CHUNKS, "pipelineSchedule": "Interleaved1F1B", "data": 2, "architecture": TIED},
    {**TWO_CHUNKS, "pipelineSchedule": "ZBVZeroBubble", "data": 2, "architecture": TIED},
    {"data": 2, "architecture": MOE},
    {"data": 2, "expert": 2, "architecture": MOE},
    {"data": 2, "expert": 2, "architecture": MOE, "training": _full(microBatchSize=1)},
    {"data": 4, "expert": 2, "architecture": MOE},
    {"data": 2, "expert": 2, "tensor": 2, "architecture": MOE, "training": _full()},
    {"data": 2, "expert": 2, "replicate": 2, "architecture": MOE},
    {"context": 2, "expert": 2, "architecture": MOE},
    {"context": 2, "tensor": 2, "architecture": MOE, "training": _full()},
    {"data": 2, "expert": 2, "pipeline": 2, "architecture": MOE},
    {**TWO_CHUNKS, "pipelineSchedule": "DualPipeV", "data": 2, "expert": 2, "architecture": MOE},
]
METERED = [
    *((case, "bfloat16") for case in CASES),
    # every group and operation also in a precision of other sizes
    *(
        (case, "float64")
        for case in CASES
        if case.keys() <= {"data", "tensor", "pipeline", "context", "replicate", "expert"}
        or case.get("architecture") in (MOE, TIED)
        or {"gradientSync", "communication"} & case.get("training", {}).keys()
    ),
]


def _name(case: dict[str, Any] | str) -> str:
    if isinstance(case, str):
        return case
    return ", ".join(f"{key} {value}" for key, value in case.items())


def _job(case: dict[str, Any], precision: str) -> Job:
    raw = job_spec(precision=precision, uri="file:///nowhere", **case)
    job = check("test", raw)
    assert isinstance(job, Job), job
    return job


def _covers(metered: tuple[dict[str, Any], str]) -> frozenset[object]:
    """Return the group and operation of each collective by precision, and every pair of choices."""
    case, precision = metered
    job = _job(case, precision)
    stages = range(job.layout.pipeline)
    recipe = TrainingSetup.of(job)
    collectives = {key for stage in stages for key in stage_communication(recipe, stage)}
    flat = {key: value for key, value in case.items() if not isinstance(value, dict)}
    for section in ("architecture", "training"):
        flat |= {f"{section} {key}": str(value) for key, value in case.get(section, {}).items()}
    degrees = dict.fromkeys(("tensor", "pipeline", "data", "context", "replicate", "expert"), 1)
    choices = pairs({key: str(value) for key, value in (degrees | flat).items()})
    return choices | {(precision, *key) for key in collectives}


COVERING = cover(METERED, _covers, lambda metered: _job(*metered).layout.world_size)
"""The cases of `make test`."""
ROUTED: tuple[Any, Any] = ("ep", "all_to_all")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import numpy as np

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    folder = tmp_path_factory.mktemp("shards")
    tokens = np.random.default_rng(0).integers(0, 320, 4000).astype(np.uint32)
    write_shards(folder, "train", [tokens], 320)
    write_shards(folder, "held-out", [tokens[:700]], 320)
    return PreparedData(folder, 4000, 700, "digest")


class Metered:
    """What the meter counts on every rank; all cases of one world size share its processes."""

    def __init__(self, data: Any, cases: list[tuple[dict[str, Any], str]]) -> None:
        self._data, self._cases = data, cases
        self._seen: dict[tuple[str, str], list[Any]] = {}

    def ranks(self, case: dict[str, Any], precision: str) -> list[Any]:
        if (_name(case), precision) not in self._seen:
            world = _job(case, precision).layout.world_size
            jobs = {(_name(each), p): _job(each, p) for each, p in self._cases}
            mine = {key: job for key, job in jobs.items() if job.layout.world_size == world}
            results = run_world(world, lambda rank: self._observe(mine), timeout=600)
            for key in mine:
                self._seen[key] = [found[key] for found in results]
        return self._seen[_name(case), precision]

    def _observe(self, jobs: dict[tuple[str, str], Job]) -> dict[tuple[str, str], Any]:
        import torch

        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.parallel.mesh import Grid
        from llmtrain_trainer.training.trainer import Trainer

        grids: dict[tuple[Layout, int], Grid] = {}
        labels: dict[str, str] = {}
        found = {}
        for key, job in jobs.items():
            sync = TrainingSetup.of(job).sync
            own = grids.get((job.layout, sync.replicas_per_rack)) or Grid.build(
                job.layout, "cpu", sync
            )
            grids[job.layout, sync.replicas_per_rack] = own
            # torch may use the group of an equal mesh that it saw before
            labels = {**labels, **own.labels}
            run = from_spec(job.name, job.spec.to_wire())
            grid, device = replace(own, labels=labels), torch.device("cpu")
            trainer = Trainer(run, self._data, device, lambda report: None, grid)
            trainer.take_step()
            report = trainer.take_step(sampled=True)
            found[key] = {(s.group, s.op): (s.count, s.nbytes) for s in report.collectives}
        return found


@pytest.fixture(scope="module")
def metered(shards: Any, request: pytest.FixtureRequest) -> Iterator[Metered]:
    cases = selected(request, "test_counts_and_bytes_equal_the_trainers_meter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield Metered(shards, [(case["case"], case["precision"]) for case in cases])


@pytest.mark.torch
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "precision"),
    [
        pytest.param(*each, marks=() if each in COVERING else pytest.mark.exhaustive)
        for each in METERED
    ],
    ids=_name,
)
def test_counts_and_bytes_equal_the_trainers_meter(
    case: dict[str, Any], precision: str, metered: Metered
) -> None:
    """Every group and operation of every rank, in a step that is not the first.

    Which rank receives how many rows is the router's choice; all ranks together receive the plan's.
    """
    job = _job(case, precision)
    setup = TrainingSetup.of(job)
    routed_planned = routed_seen = 0
    for rank, seen in enumerate(metered.ranks(case, precision)):
        planned = stage_communication(setup, job.layout.coordinates(rank)["pipeline"])
        expected = {key: (c.count, c.nbytes) for key, c in planned.items()}
        if ROUTED in expected:
            count, nbytes = seen[ROUTED]
            routed_planned, routed_seen = routed_planned + expected[ROUTED][1], routed_seen + nbytes
            expected[ROUTED] = count, nbytes
            assert count == planned[ROUTED].count
        assert seen == expected
    assert routed_seen == routed_planned
    assert (routed_seen > 0) == (job.layout.expert > 1)


@unit
def test_the_chosen_cases_cover_every_collective_and_pair_of_choices() -> None:
    assert union(map(_covers, COVERING)) == union(map(_covers, METERED))


@unit
def test_tensor_parallel_moves_four_gathers_and_four_scatters_a_layer() -> None:
    setup = TrainingSetup(LLAMA, Layout(tensor=8, data=2), 32, 2)
    found = communication(setup)
    hidden_states = 2 * 8192 * 4096 * 2
    calls = setup.micro_batches * (4 * 32 + 2)
    assert found["tp", "all_gather"] == CollectiveCalls(calls, calls * hidden_states)
    assert found["tp", "reduce_scatter"] == found["tp", "all_gather"]


@unit
def test_fsdp_gathers_twice_and_scatters_once() -> None:
    setup = TrainingSetup(LLAMA, Layout(data=8), 8)
    found = communication(setup)
    total = count_parameters(LLAMA).total
    ends = 2 * 128256 * 4096 + 4096
    assert found["dp", "all_gather"].nbytes == 2 * (2 * total - ends)
    assert found["dp", "reduce_scatter"] == CollectiveCalls(33, 4 * total)


@unit
def test_replicas_sum_shards_of_gradients() -> None:
    setup = TrainingSetup(LLAMA, Layout(data=8, replicate=4), 32)
    shard = count_parameters(LLAMA).total // 8
    assert communication(setup)["rep", "all_reduce"] == CollectiveCalls(33 + 1, 4 * shard + 4)


@unit
def test_zero1_moves_weights_and_gradients_once_however_many_micro_batches() -> None:
    total = count_parameters(LLAMA).total
    for batch in (8, 64):
        found = communication(TrainingSetup(LLAMA, Layout(data=8), batch, sharding="zero1"))
        assert found["dp", "all_gather"].nbytes == 2 * total
        assert found["dp", "reduce_scatter"].nbytes == 4 * total


@unit
@pytest.mark.parametrize(
    ("schedule", "chunks", "boundaries"),
    [("1F1B", 1, 2), ("Interleaved1F1B", 2, 4), ("ZBVZeroBubble", 2, 4)],
)
def test_a_middle_rank_sends_over_every_boundary_both_ways(
    schedule: Any, chunks: int, boundaries: int
) -> None:
    setup = TrainingSetup(LLAMA, Layout(tensor=2, pipeline=4), 16, schedule=schedule, chunks=chunks)
    part = 8192 * 4096 * 2 // 2
    found = stage_communication(setup, 1)
    assert found["pp", "send"] == CollectiveCalls(16 * boundaries, 16 * boundaries * part)
    assert found["pp", "recv"] == found["pp", "send"]


@unit
def test_a_v_shape_turns_on_the_last_rank_without_a_message() -> None:
    setup = TrainingSetup(LLAMA, Layout(pipeline=4), 16, schedule="ZBVZeroBubble", chunks=2)
    assert stage_communication(setup, 3)["pp", "send"].count == 2 * 16
    assert stage_communication(setup, 0)["pp", "send"].count == 2 * 16


@unit
def test_one_rank_communicates_nothing() -> None:
    assert communication(TrainingSetup(LLAMA, Layout(), 4)) == {}


@unit
def test_context_ranks_gather_keys_and_values_and_count_as_data_ranks() -> None:
    setup = TrainingSetup(LLAMA, Layout(context=2, data=4), 4)
    found = communication(setup)
    keys = 8192 * 1024 * 2
    assert found["cp", "all_gather"] == CollectiveCalls(2 * 32, 2 * 32 * keys)
    assert found["cp", "reduce_scatter"] == found["cp", "all_gather"]
    plain = communication(TrainingSetup(LLAMA, Layout(data=8), 8))
    assert found["dp", "all_gather"] == plain["dp", "all_gather"]


@unit
def test_a_receive_is_not_counted_twice() -> None:
    setup = TrainingSetup(LLAMA, Layout(pipeline=2), 4)
    found = communication(setup)
    assert bytes_per_step(found, "pp") == found["pp", "send"].nbytes + 2 * 4


@unit
def test_syncing_every_micro_batch_costs_traffic() -> None:
    once = TrainingSetup(LLAMA, Layout(data=8), 64)
    always = replace(once, syncs_always=True)
    times = communication(always)["dp", "reduce_scatter"].nbytes
    assert times == 8 * communication(once)["dp", "reduce_scatter"].nbytes
