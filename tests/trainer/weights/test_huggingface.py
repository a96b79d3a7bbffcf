"""Exported models compute the same in `transformers`, and come back with the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.model import Architecture, RopeScaling
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch

SIZES: dict[str, Any] = {
    "layers": 3,
    "hidden_size": 32,
    "heads": 4,
    "ffn_size": 48,
    "vocab_size": 320,
    "sequence_length": 16,
}
GPT = {"positions": "learned", "norm": "layer", "activation": "gelu", "biases": "all"}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "rope_theta": 5e5},
    "llama 3.1": {
        "kv_heads": 2,
        "rope_scaling": RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_sequence_length=100
        ),
    },
    "llama with wide heads, biases and tied": {
        "head_dim": 16,
        "biases": "all",
        "tied_embeddings": True,
    },
    "qwen2": {"kv_heads": 2, "biases": "qkv", "norm_epsilon": 1e-6},
    "qwen3": {"kv_heads": 2, "head_dim": 16, "qk_norm": True, "tied_embeddings": True},
    "gpt2": {**GPT, "tied_embeddings": True},
    "gpt2 untied": GPT,
    "mixtral": {"kv_heads": 2, "experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.02},
    "qwen3 with experts": {
        "kv_heads": 2,
        "head_dim": 16,
        "qk_norm": True,
        "experts": 5,
        "experts_per_token": 3,
    },
}


def _model(shape: Architecture) -> Any:
    """A decoder in which no weight is what it is at the start of training."""
    import torch

    from llmtrain_trainer.model.decoder import Decoder

    torch.manual_seed(5)
    model = Decoder(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def _read(model: Any) -> Any:
    def read(names: Sequence[str]) -> Mapping[str, Any]:
        weights = dict(model.named_parameters())
        return {name: weights[name].detach() for name in names}

    return read


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmtrain_trainer.data.tokenizer import train_bpe

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(["how much wood would a woodchuck chuck"] * 9, 320).save(str(path))
    return path


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_exported_models_compute_the_same_in_transformers_and_come_back(
    changes: dict[str, Any], tmp_path: Path, tokenizer: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmtrain_trainer.weights.huggingface import export, weights_of_huggingface

    shape = Architecture(**{**SIZES, **changes})
    ours = _model(shape)
    export(_read(ours), shape, tmp_path, tokenizer, shard_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    tokens = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = ours(tokens), theirs(tokens).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.decode(loaded("a woodchuck would")["input_ids"]) == "a woodchuck would"
    assert loaded.eos_token_id == theirs.config.eos_token_id == 0

    again, read = weights_of_huggingface(tmp_path)
    assert (
        again.model_dump()
        == shape.model_copy(
            update={"head_dim": again.head_dim, "kv_heads": again.kv_heads}
        ).model_dump()
    )
    weights = dict(ours.named_parameters())
    back = read(list(weights))
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def _compare_as_read(theirs: Any, folder: Path) -> None:
    """Let `transformers` save a model, read it, and compare logits."""
    import torch

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    theirs.save_pretrained(folder)
    shape, read = weights_of_huggingface(folder)
    ours = Decoder(shape)
    ours.load_state_dict({name: read([name])[name] for name, _ in ours.named_parameters()})
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_that_transformers_wrote_is_read(family: str, tmp_path: Path) -> None:
    """All of its layers are mixtures, and the weights of the chosen experts sum to one."""
    from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

    from llmtrain_trainer.weights.huggingface import CONFIG, weights_of_huggingface

    common = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
        "num_experts_per_tok": 2,
        "head_dim": 16,
    }
    config = {
        "mixtral": lambda: MixtralConfig(**common, num_local_experts=4),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **common, num_experts=4, moe_intermediate_size=24, norm_topk_prob=True
        ),
    }[family]()
    theirs = AutoModelForCausalLM.from_config(config)
    _compare_as_read(theirs, tmp_path)
    if family == "mixtral":
        return
    written = json.loads((tmp_path / CONFIG).read_text())
    for change in ({"norm_topk_prob": False}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}):
        (tmp_path / CONFIG).write_text(json.dumps({**written, **change}))
        with pytest.raises(InputError) as caught:
            weights_of_huggingface(tmp_path)
        assert caught.value.reason == "ImportUnsupported"


def test_a_model_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    """Mistral without a window is Llama; the window, scaled positions and others are refused."""
    from transformers import MistralConfig, MistralForCausalLM

    from llmtrain_trainer.weights.huggingface import CONFIG, weights_of_huggingface

    config = MistralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        sliding_window=None,
    )
    theirs = MistralForCausalLM(config)
    _compare_as_read(theirs, tmp_path)

    written = json.loads((tmp_path / CONFIG).read_text())
    for change in (
        {"sliding_window": 8},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"hidden_act": "relu"},
        {"model_type": "bloom"},
    ):
        (tmp_path / CONFIG).write_text(json.dumps({**written, **change}))
        with pytest.raises(InputError) as caught:
            weights_of_huggingface(tmp_path)
        assert caught.value.reason == "ImportUnsupported"
    (tmp_path / CONFIG).write_text(json.dumps({**written, "intermediate_size": 64}))
    with pytest.raises(InputError, match=r"gate_proj.*shape"):
        weights_of_huggingface(tmp_path)[1](["layers.0.ffn.gate.weight"])
    (tmp_path / CONFIG).write_text(json.dumps({**written, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match="no file has model"):
        weights_of_huggingface(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError) as caught:
        weights_of_huggingface(tmp_path)
    assert caught.value.reason == "ModelUnreadable"


def test_a_shape_that_no_family_has_is_refused(tmp_path: Path) -> None:
    from llmtrain_trainer.weights.huggingface import export

    shape = Architecture(**SIZES, norm="layer")
    with pytest.raises(InputError, match="no Hugging Face family"):
        export(_read(_model(shape)), shape, tmp_path)
    assert not list(tmp_path.iterdir())
