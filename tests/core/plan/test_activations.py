"""Activation bytes of a transformer block against what autograd saves."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_core.plan.memory.activations import block_bytes_per_token
from llmtrain_core.plan.model.model_shape import shape_of
from llmtrain_core.plan.training_setup import Checkpointing
from tests.support.norm_bytes import norm_bytes

BLOCKS: list[dict[str, Any]] = [
    {"hidden_size": 256, "heads": 4, "kv_heads": 4, "ffn_size": 704, "sequence_length": 128},
    {"hidden_size": 256, "heads": 8, "kv_heads": 2, "ffn_size": 896, "sequence_length": 64},
    {"hidden_size": 192, "heads": 6, "kv_heads": 1, "ffn_size": 512, "sequence_length": 256},
    {
        "hidden_size": 256,
        "heads": 4,
        "ffn_size": 1024,
        "sequence_length": 64,
        "norm": "layer",
        "activation": "gelu",
        "biases": "all",
        "positions": "learned",
    },
    {
        "hidden_size": 256,
        "heads": 8,
        "kv_heads": 2,
        "ffn_size": 896,
        "sequence_length": 64,
        "qk_norm": True,
    },
    {
        "hidden_size": 256,
        "heads": 8,
        "kv_heads": 2,
        "ffn_size": 448,
        "sequence_length": 64,
        "experts": 8,
        "experts_per_token": 2,
    },
    {
        "hidden_size": 128,
        "heads": 4,
        "ffn_size": 256,
        "sequence_length": 64,
        "activation": "gelu",
        "experts": 4,
        "experts_per_token": 3,
    },
]


@pytest.mark.torch
@pytest.mark.parametrize("sizes", BLOCKS)
@pytest.mark.parametrize("compute", [2, 4])
@pytest.mark.parametrize("kind", get_args(Checkpointing))
def test_activations_are_within_five_percent_of_what_autograd_saves(
    sizes: dict[str, Any], compute: int, kind: Checkpointing
) -> None:
    shape = Architecture(layers=1, vocab_size=64, **sizes)
    saved = _saved_bytes(shape, 3, compute, kind)
    per_token = block_bytes_per_token(shape_of(shape), 1, compute, kind, "eager")
    if kind == "none":
        per_token += norm_bytes(shape_of(shape), compute)
    assert 3 * shape.sequence_length * per_token == pytest.approx(saved, rel=0.05)


def _saved_bytes(shape: Architecture, batch: int, compute: int, kind: Checkpointing) -> int:
    """Bytes of storages that autograd keeps for one block, its parameters left out."""
    import torch

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.parallel.recompute import apply_activation_checkpointing

    dtype = torch.bfloat16 if compute == 2 else torch.float32
    model = Decoder(shape)
    rotary = model.rotary
    apply_activation_checkpointing(model, kind)
    [block] = model.blocks()
    block.to(dtype)
    tables = () if rotary is None else (rotary.cos, rotary.sin)
    given = {t.data_ptr() for t in (*block.parameters(), *tables)}
    size = (batch, shape.sequence_length, shape.hidden_size)
    x = torch.randn(*size, dtype=dtype, requires_grad=True)
    seen: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = block(x, rotary)
    assert kept.requires_grad
    return sum(seen.values())
