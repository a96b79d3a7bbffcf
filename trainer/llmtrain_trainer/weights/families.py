"""Configurations and tensor names of the Hugging Face families that the decoder supports.

Names and meanings are those of the models' own `config.json` and `model.safetensors`. Mistral
without a sliding window equals Llama and is read as Llama.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmtrain_core.api.model import Architecture, RopeScaling
from llmtrain_core.validation.family import FAMILIES, NO_FAMILY, hugging_face_family
from llmtrain_trainer.errors import InputError

SCALED = "llama3"
"""Name of the scaling of rotary frequencies that Llama 3.1 has."""

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """One tensor of a safetensors file and the decoder weights in it."""

    hf_name: str
    names: tuple[str, ...]
    """Concatenated along the rows, which are outputs."""
    transposed: bool = False
    """GPT-2 stores matrices as (in, out)."""
    expert: int | None = None
    """Index among the stacked experts. In the file, each expert is a separate tensor."""


def family_of(shape: Architecture) -> str:
    """Return the `model_type` that computes the same as the decoder. Raises InputError if none."""
    family = hugging_face_family(shape)
    if family is None:
        raise InputError(
            "ExportUnsupported",
            NO_FAMILY,
            field="spec.model.architecture",
            remedy=f"use the shape of {FAMILIES} (docs/trainer.md)",
        )
    return family


def config_of(shape: Architecture, dtype: str, bos: int | None, eos: int | None) -> dict[str, Any]:
    """Return the `config.json` of a model, with the ids of its BOS and EOS tokens."""
    family = family_of(shape)
    common = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": dtype,
    }
    if family == "gpt2":
        return common | {
            "n_embd": shape.hidden_size,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_inner": shape.ffn_size,
            "n_positions": shape.sequence_length,
            "layer_norm_epsilon": shape.norm_epsilon,
            "activation_function": TANH_GELU[0],
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    own: dict[str, Any] = _rope(shape)
    if family == "llama":
        own |= {"attention_bias": shape.biases == "all", "mlp_bias": shape.biases == "all"}
    elif shape.experts > 1:
        own |= _experts(shape, family)
    return common | {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.sequence_length,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        **own,
    }


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a `config.json`. Raises InputError if the decoder differs."""
    family = config.get("model_type")
    try:
        if family == "gpt2":
            return _gpt(config)
        if family in ("mistral", *_CLASSES):
            return _llama(config, str(family))
    except KeyError as error:
        raise _unsupported(f"config.json has no {error}") from error
    except ValidationError as error:
        raise _unsupported(f"config.json is out of bounds: {error.errors()[0]['msg']}") from error
    raise _unsupported(f"model_type {str(family)[:64]!r} is none of {', '.join(_CLASSES)}, mistral")


def tensor_mappings(shape: Architecture) -> Iterator[TensorMapping]:
    """Yield every tensor of a model's safetensors files, the layers in order."""
    return (_gpt_mappings if family_of(shape) == "gpt2" else _llama_mappings)(shape)


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


_EXPERTS = {
    "mixtral": ("num_local_experts", "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("num_experts", "mlp", ("gate_proj", "up_proj", "down_proj")),
}
"""Family -> setting with the number of experts, their module, and its names of gate, up and
down."""


def _experts(shape: Architecture, family: str) -> dict[str, Any]:
    """Return the expert settings of a `config.json`. Every layer has experts."""
    found = {
        _EXPERTS[family][0]: shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "router_aux_loss_coef": _rounded(
            shape.load_balancing_weight * shape.layers / shape.experts_per_token
        ),
    }
    if family == "mixtral":
        return found | {"sliding_window": None}
    return found | {
        "moe_intermediate_size": shape.ffn_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": False,
    }


def _expert_mappings(shape: Architecture, ours: str, theirs: str) -> Iterator[TensorMapping]:
    _, module, names = _EXPERTS[family_of(shape)]
    yield TensorMapping(f"{theirs}{module}.gate.weight", (f"{ours}ffn.router.weight",))
    for name, stored in zip(("gate", "up", "down"), names, strict=True):
        for expert in range(shape.experts):
            yield TensorMapping(
                f"{theirs}{module}.experts.{expert}.{stored}.weight",
                (f"{ours}ffn.experts.{name}",),
                expert=expert,
            )


def _llama_mappings(shape: Architecture) -> Iterator[TensorMapping]:
    yield TensorMapping("model.embed_tokens.weight", ("tok_embeddings.weight",))
    biased = {"none": (), "qkv": ("wq", "wk", "wv"), "all": ("wq", "wk", "wv", "wo")}[shape.biases]
    for layer in range(shape.layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        yield TensorMapping(f"{theirs}input_layernorm.weight", (f"{ours}attention_norm.weight",))
        for name in ("wq", "wk", "wv", "wo"):
            for kind in ("weight", "bias") if name in biased else ("weight",):
                yield TensorMapping(
                    f"{theirs}self_attn.{name[1]}_proj.{kind}", (f"{ours}attention.{name}.{kind}",)
                )
        for name in ("q_norm", "k_norm") if shape.qk_norm else ():
            yield TensorMapping(
                f"{theirs}self_attn.{name}.weight", (f"{ours}attention.{name}.weight",)
            )
        yield TensorMapping(f"{theirs}post_attention_layernorm.weight", (f"{ours}ffn_norm.weight",))
        if shape.experts > 1:
            yield from _expert_mappings(shape, ours, theirs)
            continue
        for name in ("gate", "up", "down"):
            for kind in ("weight", "bias") if shape.biases == "all" else ("weight",):
                yield TensorMapping(
                    f"{theirs}mlp.{name}_proj.{kind}", (f"{ours}ffn.{name}.{kind}",)
                )
    yield TensorMapping("model.norm.weight", ("norm.weight",))
    if not shape.tied_embeddings:
        yield TensorMapping("lm_head.weight", ("output.weight",))


def _gpt_mappings(shape: Architecture) -> Iterator[TensorMapping]:
    yield TensorMapping("transformer.wte.weight", ("tok_embeddings.weight",))
    yield TensorMapping("transformer.wpe.weight", ("pos_embeddings.weight",))
    for layer in range(shape.layers):
        ours, theirs = f"layers.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            yield TensorMapping(f"{theirs}ln_1.{kind}", (f"{ours}attention_norm.{kind}",))
            yield TensorMapping(f"{theirs}ln_2.{kind}", (f"{ours}ffn_norm.{kind}",))
            transposed = kind == "weight"
            joined = tuple(f"{ours}attention.{name}.{kind}" for name in ("wq", "wk", "wv"))
            yield TensorMapping(f"{theirs}attn.c_attn.{kind}", joined, transposed)
            yield TensorMapping(
                f"{theirs}attn.c_proj.{kind}", (f"{ours}attention.wo.{kind}",), transposed
            )
            yield TensorMapping(f"{theirs}mlp.c_fc.{kind}", (f"{ours}ffn.up.{kind}",), transposed)
            yield TensorMapping(
                f"{theirs}mlp.c_proj.{kind}", (f"{ours}ffn.down.{kind}",), transposed
            )
    for kind in ("weight", "bias"):
        yield TensorMapping(f"transformer.ln_f.{kind}", (f"norm.{kind}",))
    if not shape.tied_embeddings:
        yield TensorMapping("lm_head.weight", ("output.weight",))


def _llama(config: Mapping[str, Any], family: str) -> Architecture:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    length = config["max_position_embeddings"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    _refuse(rope_scaling=(kind, kind not in (None, "default", SCALED)))
    _refuse(
        hidden_act=(config.get("hidden_act", "silu"), config.get("hidden_act", "silu") != "silu")
    )
    _refuse(sliding_window=(window, isinstance(window, int) and window < length))
    biases = _llama_biases(config, family)
    experts = _mixture(config, family) if family in _EXPERTS else {}
    return Architecture(
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        ffn_size=config["moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"],
        vocab_size=config["vocab_size"],
        sequence_length=length,
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        rope_scaling=_scaling(rope) if kind == SCALED else None,
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=config.get("tie_word_embeddings", False),
        biases=biases,
        qk_norm=family in ("qwen3", "qwen3_moe"),
        **experts,
    )


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_sequence_length=rope["original_max_position_embeddings"],
    )


def _rope(shape: Architecture) -> dict[str, Any]:
    """Return the settings of scaled rotary positions, under the names of old and new releases."""
    scaling = shape.rope_scaling
    if scaling is None:
        return {}
    found = {
        "rope_type": SCALED,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_sequence_length,
    }
    return {
        "rope_scaling": found,
        "rope_parameters": {"rope_theta": shape.rope_theta, **found},
    }


def _mixture(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Return the expert fields of an architecture. Raises InputError for unsupported settings."""
    if family == "qwen3_moe":
        normed, dense = config.get("norm_topk_prob", False), config.get("mlp_only_layers") or []
        every = config.get("decoder_sparse_step", 1)
        _refuse(
            norm_topk_prob=(normed, not normed),
            mlp_only_layers=(dense, bool(dense)),
            decoder_sparse_step=(every, every != 1),
        )
    choices, layers = config["num_experts_per_tok"], config["num_hidden_layers"]
    return {
        # transformers 5 writes Mixtral's name for all
        "experts": config.get(_EXPERTS[family][0]) or config["num_local_experts"],
        "experts_per_token": choices,
        "load_balancing_weight": _rounded(
            config.get("router_aux_loss_coef", 0.0) * choices / layers
        ),
    }


def _rounded(weight: float) -> float:
    """Return a weight without the last digits, so that an export restores the imported one.

    `router_aux_loss_coef` is the weight of one loss for all layers, whose shares of choices sum to
    the number of experts per token (`load_balancing_loss_func` of `transformers`). Our weight is
    per layer, and the shares sum to one.
    """
    return float(f"{weight:.12g}")


def _llama_biases(config: Mapping[str, Any], family: str) -> Any:
    if family == "qwen2":
        return "qkv"
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    _refuse(attention_bias=(attention, attention != mlp or (attention and family != "llama")))
    return "all" if attention else "none"


def _gpt(config: Mapping[str, Any]) -> Architecture:
    activation = config.get("activation_function", TANH_GELU[0])
    _refuse(activation_function=(activation, activation not in TANH_GELU))
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        _refuse(**{name: (config.get(name, usual), config.get(name, usual) != usual)})
    hidden = config["n_embd"]
    return Architecture(
        layers=config["n_layer"],
        hidden_size=hidden,
        heads=config["n_head"],
        ffn_size=config.get("n_inner") or 4 * hidden,
        vocab_size=config["vocab_size"],
        sequence_length=config["n_positions"],
        positions="learned",
        norm="layer",
        activation="gelu",
        biases="all",
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        tied_embeddings=config.get("tie_word_embeddings", True),
    )


def _refuse(**settings: tuple[object, bool]) -> None:
    for name, (value, differs) in settings.items():
        if differs:
            raise _unsupported(
                f"{name} is {str(value)[:64]!r}, which this decoder does not compute"
            )


def _unsupported(problem: str) -> InputError:
    return InputError(
        "ImportUnsupported",
        problem,
        remedy=f"use a model of {FAMILIES}",
    )
