"""Settings of Hugging Face configurations that have another convention here."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.job import Architecture

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("layers", "experts", "choices", "coefficient"), [(32, 8, 2, 0.02), (48, 128, 8, 0.001)]
)
def test_the_balance_weight_of_a_model_has_its_own_convention(
    layers: int, experts: int, choices: int, coefficient: float
) -> None:
    """Equal layers, so one loss over all layers is comparable with one loss per layer."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    from llmtrain_trainer.model.experts import LoadBalancingLoss, Routes
    from llmtrain_trainer.weights.families import architecture_of, config_of

    shape = Architecture(
        layers=layers,
        hidden_size=32,
        heads=4,
        ffn_size=48,
        vocab_size=320,
        sequence_length=16,
        experts=experts,
        experts_per_token=choices,
    )
    config: dict[str, Any] = {
        **config_of(shape, "float32", None, None),
        "router_aux_loss_coef": coefficient,
    }
    imported = architecture_of(config)
    logits = torch.randn(16, experts, dtype=torch.float64, generator=torch.manual_seed(2))
    theirs = coefficient * load_balancing_loss_func((logits,) * layers, experts, choices)
    probabilities = logits.softmax(-1).unsqueeze(0)
    chosen = probabilities.topk(choices, dim=-1).indices
    ours = LoadBalancingLoss()(Routes(chosen, torch.ones_like(chosen), probabilities))
    total = layers * imported.load_balancing_weight * ours
    assert float(total) == pytest.approx(float(theirs), rel=1e-6)
    assert config_of(imported, "float32", None, None)["router_aux_loss_coef"] == coefficient
