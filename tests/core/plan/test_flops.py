from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.plan.model.flops import CONVENTIONS, training_flops_per_token
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.model.parameters import count_parameters
from llmtrain_core.validation.presets import PRESETS


@pytest.mark.unit
@pytest.mark.parametrize(
    ("preset", "total"),
    [("llama2-7b", 6_738_415_616), ("llama3-8b", 8_030_261_248), ("llama3-70b", 70_553_706_496)],
)
def test_published_models_have_their_published_parameter_counts(preset: str, total: int) -> None:
    assert count_parameters(PRESETS[preset]).total == total


@pytest.mark.unit
def test_published_throughput_tables_are_reproduced_by_the_causal_convention() -> None:
    """Megatron-Bridge publishes 744 TFLOP/s at 14451 tokens/s for Llama 3 8B at length 8192."""
    per_token = training_flops_per_token(PRESETS["llama3-8b"], "causal-attention")
    assert per_token == pytest.approx(744e12 / 14451, rel=1e-3)


@pytest.mark.unit
def test_full_attention_counts_the_attention_term_twice() -> None:
    shape = PRESETS["llama3-8b"]
    full = training_flops_per_token(shape, "full-attention")
    causal = training_flops_per_token(shape, "causal-attention")
    assert full - causal == 6 * 32 * 4096 * 8192


@pytest.mark.unit
def test_attention_inside_documents_counts_their_length() -> None:
    """Tokens of documents of 512 attend in 512 tokens, however long the sequence is."""
    shape = PRESETS["llama3-8b"]
    for convention in CONVENTIONS:
        whole = training_flops_per_token(shape, convention)
        assert training_flops_per_token(shape, convention, 8192) == whole
        alone = training_flops_per_token(SHAPES["llama3-8b"].with_length(512), convention)
        assert training_flops_per_token(shape, convention, 512.0) == alone < whole


@pytest.mark.unit
def test_a_tied_embedding_is_counted_once_and_multiplied_once() -> None:
    base = {
        "layers": 2,
        "hidden_size": 8,
        "heads": 2,
        "ffn_size": 16,
        "vocab_size": 32,
        "sequence_length": 4,
    }
    tied = count_parameters(Architecture(**base, tied_embeddings=True))
    free = count_parameters(Architecture(**base))
    assert free.total - tied.total == 32 * 8
    assert free.multiplied == tied.multiplied == tied.total


@pytest.mark.unit
def test_frozen_weights_save_a_third_of_the_products() -> None:
    shape = SHAPES["llama3-8b"]
    adapted = shape.with_adapters(16, ("q_proj", "v_proj"))
    count = count_parameters(adapted)
    for convention in CONVENTIONS:
        saved = training_flops_per_token(shape, convention) - training_flops_per_token(
            adapted, convention
        )
        assert saved == 2 * count.multiplied - 6 * count.adapters


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 2, "tied_embeddings": True, "head_dim": 16},
        {"activation": "gelu", "positions": "learned", "norm": "layer", "biases": "all"},
        {"experts": 4, "experts_per_token": 2},
        {"experts": 8, "experts_per_token": 3, "activation": "gelu"},
    ],
    ids=str,
)
def test_flops_are_within_one_percent_of_what_torch_counts(changes: dict[str, Any]) -> None:
    """Forward and backward of the trainer's model; plain attention, which torch can count."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from llmtrain_trainer.model.decoder import Decoder

    sizes: dict[str, Any] = {
        "layers": 2,
        "hidden_size": 192,
        "heads": 4,
        "ffn_size": 320,
        "vocab_size": 192,
        "sequence_length": 48,
    }
    shape = Architecture(**{**sizes, **changes})
    model = Decoder(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(0, shape.vocab_size, (2, shape.sequence_length))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    planned = training_flops_per_token(shape, "full-attention") * tokens.numel()
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.01)
