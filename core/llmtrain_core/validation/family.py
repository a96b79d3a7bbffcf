"""Find the Hugging Face model type of an architecture."""

from __future__ import annotations

from llmtrain_core.api.model import Architecture

NO_FAMILY = (
    "no Hugging Face family has this combination of positions, norm, activation, biases, qkNorm,"
    " kvHeads, headDim and experts"
)
FAMILIES = "Llama, Mistral, Mixtral, Qwen2, Qwen3 (dense or with experts) or GPT-2"


def hugging_face_family(shape: Architecture) -> str | None:
    """Return the `model_type`; None if no family has this combination."""
    if (shape.positions, shape.norm, shape.activation) == ("rotary", "rms", "swiglu"):
        return _rotary_family(shape)
    gpt = (shape.positions, shape.norm, shape.activation) == ("learned", "layer", "gelu")
    plain = shape.key_value_heads == shape.heads and not shape.qk_norm and shape.biases == "all"
    whole = shape.head_width * shape.heads == shape.hidden_size and shape.experts == 1
    return "gpt2" if gpt and plain and whole else None


def _rotary_family(shape: Architecture) -> str | None:
    if shape.experts > 1:
        if shape.biases != "none":
            return None
        return "qwen3_moe" if shape.qk_norm else "mixtral"
    if shape.qk_norm:
        return "qwen3" if shape.biases == "none" else None
    return "qwen2" if shape.biases == "qkv" else "llama"
