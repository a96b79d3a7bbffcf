"""What a folder holds beside plain weights of the decoder is refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch

SIZES: dict[str, Any] = {
    "layers": 1,
    "hidden_size": 8,
    "heads": 2,
    "ffn_size": 12,
    "vocab_size": 20,
    "sequence_length": 16,
}

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a tiny model, changed by a function of its tensors."""
    import torch
    from safetensors.torch import load_file, save_file

    from llmtrain_trainer.model.decoder import Decoder
    from llmtrain_trainer.weights.huggingface import export

    def make(change: Callable[[dict[str, Any]], Any], **shape: Any) -> Path:
        architecture = Architecture(**{**SIZES, **shape})
        torch.manual_seed(1)
        weights = {name: each.detach() for name, each in Decoder(architecture).named_parameters()}
        export(lambda names: {name: weights[name] for name in names}, architecture, tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        return tmp_path

    return make


def refused(folder: Path) -> InputError:
    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    with pytest.raises(InputError) as caught:
        weights_of_huggingface(folder)
    assert caught.value.remedy
    return caught.value


def _quantize(to: str, scale_name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        import torch

        scale = tensors[UP].abs().max() / 100
        tensors[UP] = (tensors[UP] / scale).to(getattr(torch, to))
        tensors[UP + scale_name] = scale.reshape(1)

    return change


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("float8_e4m3fn", "_scale_inv"), ("float8_e5m2", "_scale"), ("int8", ".SCB")],
)
def test_quantized_weights_are_refused_by_their_type(
    kind: str, scale: str, model: Callable[..., Path]
) -> None:
    """Their scales were dropped, and the integers became weights."""
    error = refused(model(_quantize(kind, scale)))
    assert error.reason == "ImportUnsupported"
    assert f"{UP} has the type" in error.message
    assert "dequantize" in (error.remedy or "")


def test_a_configuration_of_quantized_weights_is_refused(model: Callable[..., Path]) -> None:
    folder = model(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert "quantized (gptq)" in refused(folder).message


def test_a_tensor_that_nothing_reads_is_refused(model: Callable[..., Path]) -> None:
    """A bias of a family without biases, and a layer beyond the last one."""

    def change(tensors: dict[str, Any]) -> None:
        bias = tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = bias.clone()
        tensors["model.layers.1.input_layernorm.weight"] = bias.clone()

    error = refused(model(change))
    assert error.reason == "ImportUnsupported"
    assert (
        "no place for model.layers.0.self_attn.q_proj.bias, model.layers.1.input_layernorm.weight"
        in error.message
    )


def test_constants_of_older_releases_are_no_weights(model: Callable[..., Path]) -> None:
    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    def change(tensors: dict[str, Any]) -> None:
        import torch

        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)

    _, read = weights_of_huggingface(model(change))
    assert read(["norm.weight"])["norm.weight"].shape == (8,)


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_output_is_a_copy_of_the_embedding_or_refused(
    equal: bool, model: Callable[..., Path]
) -> None:
    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    def change(tensors: dict[str, Any]) -> None:
        copy = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"] = copy if equal else copy + 1

    folder = model(change, tied_embeddings=True)
    if equal:
        assert weights_of_huggingface(folder)[0].tied_embeddings
    else:
        assert "lm_head.weight differs from model.embed_tokens.weight" in refused(folder).message


def test_a_tensor_of_the_index_that_is_in_no_file_is_named(model: Callable[..., Path]) -> None:
    folder = model(lambda tensors: None)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.gone.weight": "model.safetensors"}})
    )
    error = refused(folder)
    assert (error.reason, "no file has model.gone.weight" in error.message) == (
        "ModelUnreadable",
        True,
    )
