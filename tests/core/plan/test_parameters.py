"""Parameter counts, exact to the unit, of whole models and of what ranks hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.plan.model.model_shape import SHAPES, ModelShape
from llmtrain_core.plan.model.parameters import (
    block_tensors,
    count_parameters,
    end_tensors,
    size,
    stage_units,
    stages,
)

pytestmark = pytest.mark.unit

PUBLISHED = {
    # numbers of elements in the published weights
    "gpt2-124m": 124_439_808,
    "gpt2-1.5b": 1_557_611_200,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}

ACTIVE = {"mixtral-8x7b": 12.9, "mixtral-8x22b": 39, "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22}
"""Billions of parameters for every token, as the models' own descriptions round them."""


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_models_to_the_unit(name: str, count: int) -> None:
    assert count_parameters(SHAPES[name]).total == count


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_a_token_meets_the_experts_that_it_visits(name: str, billions: float) -> None:
    found = count_parameters(SHAPES[name]).active / 1e9
    assert found == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", ["gpt3-175b", "gpt3-6.7b"])
def test_gpt3_by_the_closed_form_of_its_shape(name: str) -> None:
    """12 L h^2 + 13 L h for the blocks, (V + T) h for the embeddings, 2 h for the last norm."""
    s = SHAPES[name]
    layers, hidden = s.layers, s.hidden_size
    blocks = 12 * layers * hidden**2 + 13 * layers * hidden
    ends = (s.vocab_size + s.learned_positions) * hidden + 2 * hidden
    assert count_parameters(s).total == blocks + ends


def test_gpt3_is_the_175_billion_of_its_name() -> None:
    assert round(count_parameters(SHAPES["gpt3-175b"]).total / 1e9) == 175


shapes = st.builds(
    lambda layers, heads, group, width, ffn, vocab, tied, gated, norm, biases: ModelShape(
        layers,
        8 * width,
        8 * heads,
        8 * heads // group,
        width,
        8 * ffn,
        8 * vocab,
        64,
        tied,
        gated,
        norm,
        biases,
        biases,
        64 if biases else 0,
    ),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 4, 6]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["rms", "layer"]),
    st.booleans(),
)


@given(shapes, st.sampled_from([1, 2, 4]), st.integers(1, 9))
def test_stages_and_tensor_shards_add_up_to_the_model(
    shape: ModelShape, tensor: int, pipeline: int
) -> None:
    """What tensor ranks hold in common counts once; a tied embedding on two stages twice, and is
    updated once.
    """
    pipeline = min(pipeline, shape.layers)
    found = 0
    for stage in stages(shape.layers, pipeline):
        units = stage_units(shape, stage, tensor)
        common = size(t for t in units.ends if t.replicated)
        common += units.layers * size(t for t in units.block if t.replicated)
        found += tensor * (units.size - common) + common
    twice = shape.tied_embeddings and pipeline > 1
    table = shape.vocab_size * shape.hidden_size
    assert found == count_parameters(shape).total + (table if twice else 0)


@given(shapes, st.integers(1, 9), st.integers(1, 40))
def test_data_shards_cover_every_row_and_the_first_is_the_largest(
    shape: ModelShape, pipeline: int, ranks: int
) -> None:
    pipeline = min(pipeline, shape.layers)
    for stage in stages(shape.layers, pipeline):
        units = stage_units(shape, stage)
        assert units.size <= units.sharded(ranks) * ranks
        assert units.sharded(1) == units.size


@pytest.mark.parametrize(("tensor", "expert", "data"), [(1, 8, 8), (2, 4, 16), (8, 1, 4)])
def test_expert_tensor_and_data_ranks_share_the_experts_out(
    tensor: int, expert: int, data: int
) -> None:
    shape = SHAPES["mixtral-8x7b"]
    [stage] = stages(shape.layers, 1)
    with_experts = stage_units(shape, stage, tensor, expert).sharded(data)
    without = stage_units(replace(shape, experts=1, ffn_size=0), stage, tensor).sharded(data)
    router = 32 * -(-8 // data) * 4096
    assert with_experts - without - router == 32 * 8 * 3 * 4096 * 14336 // (tensor * data)


def test_stages_are_even_and_longer_ones_come_first() -> None:
    assert [s.layers for s in stages(10, 4)] == [3, 3, 2, 2]
    assert [s.embeds for s in stages(10, 4)] == [True, False, False, False]
    assert [s.predicts for s in stages(10, 4)] == [False, False, False, True]


def test_a_vocabulary_that_tensor_does_not_divide_is_padded() -> None:
    shape = SHAPES["gpt3-175b"]
    rows = end_tensors(shape, 8)[0].shape[0]
    assert 8 * (rows - 1) < shape.vocab_size <= 8 * rows


def test_biases_and_norms_are_held_by_every_tensor_rank() -> None:
    common = {t.name for t in block_tensors(SHAPES["gpt3-175b"], 8) if t.replicated}
    assert common == {
        "attention.output.bias",
        "ffn.down.bias",
        "norm.attention.scale",
        "norm.attention.shift",
        "norm.ffn.scale",
        "norm.ffn.shift",
    }
