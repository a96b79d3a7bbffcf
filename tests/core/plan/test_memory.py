"""State bytes exactly, activations against autograd, and what memory depends on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.layout import Layout
from llmtrain_core.plan.memory.activations import block_bytes_per_token
from llmtrain_core.plan.memory.training_memory import memory, stage_memory, state_bytes
from llmtrain_core.plan.model.model_shape import SHAPES, shape_of
from llmtrain_core.plan.model.parameters import count_parameters, stage_units
from llmtrain_core.plan.training_setup import TrainingSetup
from tests.support.norm_bytes import norm_bytes
from tests.support.paths import ROOT

SMALL = {
    "layers": 4,
    "hidden_size": 24,
    "heads": 4,
    "kv_heads": 2,
    "ffn_size": 40,
    "vocab_size": 100,
    "sequence_length": 16,
}

unit = pytest.mark.unit


def _total(setup: TrainingSetup, rank: int = 0) -> int:
    return sum(state_bytes(setup, setup.stages[rank]).values())


@unit
def test_fsdp2_is_sixteen_bytes_over_the_data_ranks() -> None:
    shape = SHAPES["llama3-8b"]
    total = count_parameters(shape).total
    for data in (1, 8, 64):
        assert _total(TrainingSetup(shape, Layout(data=data), data)) == 16 * total // data


@unit
def test_hsdp_shards_over_the_data_ranks_only() -> None:
    shape = SHAPES["llama3-8b"]
    hybrid = TrainingSetup(shape, Layout(data=8, replicate=16), 128)
    assert _total(hybrid) == _total(TrainingSetup(shape, Layout(data=8), 8))


@unit
@pytest.mark.parametrize("data", [1, 2, 48])
def test_zero1_is_six_bytes_and_twelve_over_the_data_ranks(data: int) -> None:
    shape = SHAPES["gpt3-175b"]
    setup = TrainingSetup(shape, Layout(data=data), data, sharding="zero1")
    parts = state_bytes(setup, setup.stages[0])
    count = count_parameters(shape).total
    assert (parts["weights"], parts["gradients"]) == (2 * count, 4 * count)
    assert parts["optimizer"] == 12 * -(-count // data)


@unit
def test_ddp_keeps_eighteen_bytes_whole() -> None:
    shape = SHAPES["llama3-8b"]
    setup = TrainingSetup(shape, Layout(data=8), 8, sharding="ddp")
    assert _total(setup) == 18 * count_parameters(shape).total


@unit
def test_tensor_and_pipeline_ranks_hold_their_part_of_the_state() -> None:
    shape = SHAPES["llama3-70b"]
    setup = TrainingSetup(shape, Layout(tensor=8, pipeline=4), 4)
    for rank, stage in enumerate(setup.stages):
        matrices = 80 // 4 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672) // 8
        norms = 80 // 4 * 2 * 8192
        ends = {0: 128256 * 8192 // 8, 3: 128256 * 8192 // 8 + 8192}.get(rank, 0)
        assert stage_units(shape, stage, 8).size == matrices + norms + ends
        assert _total(setup, rank) == 16 * (matrices + norms + ends)


@unit
@pytest.mark.parametrize(("schedule", "chunks"), [("1F1B", 1), ("ZBVZeroBubble", 2)])
def test_a_copy_of_a_tied_embedding_has_no_optimizer_state(schedule: Any, chunks: int) -> None:
    """GPT-3 over four stages: the last, or in V shape the first as well, holds the table again."""
    shape = SHAPES["gpt3-175b"]
    setup = TrainingSetup(shape, Layout(pipeline=4), 8, schedule=schedule, chunks=chunks)
    parts = [state_bytes(setup, stage) for stage in setup.stages]
    total, table = count_parameters(shape).total, 50257 * 12288
    assert sum(p["weights"] for p in parts) == 4 * (total + table)
    assert sum(p["optimizer"] for p in parts) == 8 * total


@unit
def test_float64_doubles_and_needs_no_second_copy() -> None:
    shape = SHAPES["tiny"]
    single, double = (
        _total(TrainingSetup(shape, Layout(), 1, precision=p)) for p in ("float32", "float64")
    )
    assert double == 2 * single == 32 * count_parameters(shape).total


LAYOUTS = [
    (1, 8, 1, 0, 1),
    (1, 7, 1, 0, 1),
    (2, 4, 1, 0, 1),
    (2, 3, 1, 1, 2),
    (1, 4, 2, 0, 1),
    (2, 2, 2, 1, 3),
    (1, 1, 1, 0, 1),
]
"""tensor, data, replicate, stage, stages."""

SHARDS = """
import json, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from llmtrain_core.api.job import Architecture
from llmtrain_trainer.model.decoder import Decoder, StageSpec
from llmtrain_trainer.parallel.tensor import apply_tensor_parallel

def elements(tensor, data, replicate, stage, count):
    world = tensor * data * replicate
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    names = ("dp_replicate", "fsdp", "tp")
    mesh = init_device_mesh("cpu", (replicate, data, tensor), mesh_dim_names=names)
    with torch.device("meta"):
        model = Decoder(shape, StageSpec.of_stage(shape, stage, count))
    if tensor > 1:
        apply_tensor_parallel(model, mesh["tp"])
    shard = mesh["dp_replicate", "fsdp"] if replicate > 1 else mesh["fsdp"]
    for block in model.blocks():
        fully_shard(block, mesh=shard)
    fully_shard(model, mesh=shard)
    dist.destroy_process_group()
    return sum(p.to_local().numel() for p in model.parameters())

shape = Architecture(**json.loads(sys.argv[1]))
print(json.dumps([elements(*layout) for layout in json.loads(sys.argv[2])]))
"""


@pytest.mark.torch
def test_shards_equal_those_that_torch_deals_out() -> None:
    """FSDP2, HSDP, tensor and pipeline parallel, with rows that do not divide."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDS, json.dumps(SMALL), json.dumps(LAYOUTS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}/core:{ROOT}/trainer", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    shape = shape_of(Architecture(**SMALL))
    for (tensor, data, replicate, stage, count), elements in zip(LAYOUTS, seen, strict=True):
        layout = Layout(tensor=tensor, data=data, replicate=replicate, pipeline=count)
        setup = TrainingSetup(shape, layout, data * replicate * count)
        assert state_bytes(setup, setup.stages[stage])["weights"] == 4 * elements


BILLION = Architecture(
    layers=16,
    hidden_size=2048,
    heads=32,
    kv_heads=8,
    ffn_size=8192,
    vocab_size=128256,
    sequence_length=4096,
)
WIDE = Architecture(
    layers=6,
    hidden_size=4096,
    heads=32,
    kv_heads=8,
    ffn_size=14336,
    vocab_size=32768,
    sequence_length=8192,
)


@unit
def test_the_familiar_formula_of_the_block() -> None:
    """s b h (16 + 8 f / h) with equal heads and 16 bits; log-sum-exp and scales are 1 % more."""
    shape = SHAPES["llama2-7b"]
    found = block_bytes_per_token(shape, 1, 2, "none", "eager")
    assert found == pytest.approx(16 * 4096 + 8 * 11008, rel=0.01)


@unit
def test_full_recomputation_keeps_the_input_over_the_tensor_ranks() -> None:
    shape = SHAPES["llama3-8b"]
    assert block_bytes_per_token(shape, 1, 2, "full", "eager") == 2 * 4096
    assert block_bytes_per_token(shape, 8, 2, "full", "eager") == 2 * 4096 / 8


@unit
def test_less_is_kept_with_more_recomputation_more_ranks_and_fused_kernels() -> None:
    base = TrainingSetup(SHAPES["llama3-70b"], Layout(tensor=4, data=16), 16)
    kept = [
        memory(replace(base, checkpointing=kind)).parts["activations"]
        for kind in ("none", "selective", "full")
    ]
    assert kept[0] > kept[1] > kept[2] > 0
    wider = replace(base, layout=Layout(tensor=8, data=16))
    assert memory(wider).parts["activations"] < kept[0]
    assert memory(replace(base, kernels="fused")).parts["activations"] < kept[0]


@unit
def test_1f1b_holds_one_micro_batch_less_on_every_later_stage() -> None:
    setup = TrainingSetup(SHAPES["llama3-70b"], Layout(pipeline=4), 16, checkpointing="full")
    extra = stage_memory(setup, 1)["activations"] - stage_memory(setup, 2)["activations"]
    layer_inputs = 20 * 8192 * 8192 * 2
    assert extra == layer_inputs


@unit
def test_accumulating_keeps_whole_gradients_unless_every_micro_batch_syncs() -> None:
    one = TrainingSetup(SHAPES["llama3-8b"], Layout(data=8), 8)
    two = replace(one, global_batch=16)
    total, ends = count_parameters(one.shape).total, 2 * 128256 * 4096 + 4096
    assert memory(one).parts["gradients"] == 0, "at the loss there are none yet"
    assert memory(two).parts["gradients"] == 4 * total
    assert memory(two).parts["gathered"] == 2 * ends
    always = replace(two, syncs_always=True)
    assert memory(always).parts["gradients"] == 4 * total // 8


@unit
def test_a_pipeline_has_no_gradients_while_all_micro_batches_are_in_flight() -> None:
    """GPipe's first backward pass begins with all activations and ends with whole gradients."""
    base = TrainingSetup(SHAPES["llama3-8b"], Layout(pipeline=2, data=4), 8)
    whole = stage_memory(replace(base, schedule="GPipe"), 1)
    assert whole["gradients"] == 0
    one = stage_memory(base, 1)  # 1F1B: the last stage has one in flight, and gradients
    assert whole["activations"] == pytest.approx(2 * one["activations"])
    assert one["gradients"] == 4 * stage_units(base.shape, base.stages[1], 1).size


@unit
def test_gradients_count_where_they_outgrow_activations() -> None:
    """A rank that holds 8 billion parameters for itself is fullest when it has all gradients."""
    alone = TrainingSetup(SHAPES["llama3-8b"], Layout(), 1, checkpointing="full")
    spread = replace(alone, layout=Layout(data=8), global_batch=8)
    total = count_parameters(alone.shape).total
    assert memory(spread).parts["logits"] > 0 == memory(spread).parts["gradients"]
    assert memory(alone).parts["gradients"] == 4 * total
    assert memory(alone).parts["logits"] == 0


@unit
@pytest.mark.parametrize(
    ("checkpointing", "batch", "kernels", "layers", "gib"),
    [
        ("none", (4, 1), "eager", 16, 34.91),
        ("selective", (4, 2), "eager", 16, 42.44),
        ("full", (4, 4), "eager", 16, 42.40),
        ("none", (4, 1), "compiled", 16, 34.13),
        ("none", (4, 1), "eager", 6, 34.89),
        ("full", (4, 1), "eager", 6, 28.87),
        ("none", (4, 1), "compiled", 6, 33.58),
    ],
)
def test_measured_peaks_of_one_gpu(
    checkpointing: Any, batch: tuple[int, int], kernels: Any, layers: int, gib: float
) -> None:
    """What `tests/perf/bench_gpu.py` saw an H100's allocator give out at most."""
    shape = {16: BILLION, 6: WIDE}[layers]
    setup = TrainingSetup(
        shape_of(shape), Layout(), *batch, checkpointing=checkpointing, kernels=kernels
    )
    assert memory(setup).least / 1024**3 == pytest.approx(gib, rel=0.025)


@unit
def test_the_worst_rank_is_reported_and_the_margin_counts() -> None:
    setup = TrainingSetup(SHAPES["llama3-70b"], Layout(tensor=8, pipeline=4), 16)
    worst = max(sum(stage_memory(setup, rank).values()) for rank in range(4))
    found = memory(setup, worst)
    assert found.total == worst
    assert found.fits
    assert not memory(setup, worst - 1).fits
    assert found.least == worst - found.parts["runtime"] - found.parts["fragmentation"]


@unit
@pytest.mark.parametrize(("gpus", "gib"), [(8, 82.4), (128, 67.0)])
def test_published_memory_of_llama3_8b(gpus: int, gib: float) -> None:
    """torchtitan's table 1 and 3, FSDP without compile: its own selective policy keeps every second
    product's output, so that part is counted here by its list."""
    shape = SHAPES["llama3-8b"]
    setup = TrainingSetup(shape, Layout(data=gpus), 2 * gpus, 2, checkpointing="selective")
    parts = dict(memory(setup).parts)
    query, value, mixed, gate, down, layer_input = 4096, 1024, 4096, 14336, 4096, 4096
    kept = 2 * (query + value + mixed + gate + down + layer_input) + 4 * 32
    whole_block = block_bytes_per_token(shape, 1, 2, "none", "eager")
    whole_block += norm_bytes(shape, 2)  # as torch did in 2024
    parts["activations"] = int(2 * 8192 * (32 * kept + whole_block))
    assert sum(parts.values()) / 1024**3 == pytest.approx(gib, rel=0.06)


@unit
def test_only_adapters_have_gradients_and_moments() -> None:
    """Llama 3 8B with rank 16 on queries and values: 6.8 million of 8 billion parameters learn."""
    shape = SHAPES["llama3-8b"].with_adapters(16, ("q_proj", "v_proj"))
    count = count_parameters(shape)
    adapters = 32 * 16 * (4096 + 4096 + 4096 + 1024)
    assert (count.adapters, count.learning) == (adapters, adapters)
    assert count.total == count_parameters(SHAPES["llama3-8b"]).total
    parts = state_bytes(
        TrainingSetup(shape, Layout(data=8), 8), TrainingSetup(shape, Layout(), 1).stages[0]
    )
    assert parts == {
        "weights": 4 * (count.total + adapters) // 8,
        "gradients": 4 * adapters // 8,
        "optimizer": 8 * adapters // 8,
    }


@unit
@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_ranks_share_adapters_out_like_their_weights(tensor: int) -> None:
    """Beside a product split by rows B is shared out and A is not; by columns, the other way."""
    whole = SHAPES["llama3-8b"].with_adapters(16, ("q_proj", "o_proj"))
    units = [
        stage_units(whole, TrainingSetup(whole, Layout(), 1).stages[0], t) for t in (1, tensor)
    ]
    split, common = 4096 * 16, 4096 * 16
    assert units[0].learnt.size == 32 * 2 * (split + common)
    assert units[1].learnt.size == 32 * 2 * (split // tensor + common)
