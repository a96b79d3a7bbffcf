import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.api.presets import PRESETS
from llmtrain_core.plan.flops import CONVENTIONS, training_flops_per_token
from llmtrain_core.plan.parameters import count_parameters
from llmtrain_core.plan.shapes import SHAPES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("preset", "total"),
    [("llama2-7b", 6_738_415_616), ("llama3-8b", 8_030_261_248), ("llama3-70b", 70_553_706_496)],
)
def test_published_models_have_their_published_parameter_counts(preset: str, total: int) -> None:
    assert count_parameters(PRESETS[preset]).total == total


def test_published_throughput_tables_are_reproduced_by_the_causal_convention() -> None:
    """Megatron-Bridge publishes 744 TFLOP/s at 14451 tokens/s for Llama 3 8B at length 8192."""
    per_token = training_flops_per_token(PRESETS["llama3-8b"], "causal-attention")
    assert per_token == pytest.approx(744e12 / 14451, rel=1e-3)


def test_full_attention_counts_the_attention_term_twice() -> None:
    shape = PRESETS["llama3-8b"]
    full = training_flops_per_token(shape, "full-attention")
    causal = training_flops_per_token(shape, "causal-attention")
    assert full - causal == 6 * 32 * 4096 * 8192


def test_a_tied_embedding_is_counted_once_and_multiplied_once() -> None:
    base = {"layers": 2, "hidden_size": 8, "heads": 2, "ffn_size": 16, "vocab_size": 32,
            "sequence_length": 4}  # fmt: skip
    tied = count_parameters(Architecture(**base, tied_embeddings=True))
    free = count_parameters(Architecture(**base))
    assert free.total - tied.total == 32 * 8
    assert free.multiplied == tied.multiplied == tied.total


def test_frozen_weights_save_a_third_of_the_products() -> None:
    shape = SHAPES["llama3-8b"]
    adapted = shape.with_adapters(16, ("q_proj", "v_proj"))
    count = count_parameters(adapted)
    for convention in CONVENTIONS:
        saved = training_flops_per_token(shape, convention) - training_flops_per_token(
            adapted, convention
        )
        assert saved == 2 * count.multiplied - 6 * count.adapters
