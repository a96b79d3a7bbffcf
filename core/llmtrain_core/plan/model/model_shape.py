"""Dimensions of decoder-only models, for planning.

`ModelShape` covers the API's `Architecture` and a few models that only the plan supports, to
compare the plan with their published runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from llmtrain_core.api.job import Architecture
from llmtrain_core.errors import PlanError
from llmtrain_core.validation.presets import PRESETS


@dataclass(frozen=True, slots=True)
class Adapters:
    """Low-rank adapters with frozen base weights (LoRA, arXiv:2106.09685)."""

    rank: int
    targets: tuple[str, ...]
    """Linear layers with an adapter: q_proj, ..."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a decoder-only model."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_size: int
    vocab_size: int
    sequence_length: int
    tied_embeddings: bool = False
    gated: bool = True
    """SwiGLU (three matrices) or a plain feed-forward block (two)."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm has a scale; LayerNorm a scale and a shift."""
    biases: bool = False
    """Every projection but the output has a bias (GPT-2, GPT-3)."""
    qkv_biases: bool = False
    """Only query, key and value have one (Qwen2)."""
    qk_norm: bool = False
    """Every head's queries and keys are normalised (Qwen3)."""
    learned_positions: int = 0
    """Rows of the position embedding; 0 for rotary or relative positions."""
    adapters: Adapters | None = None
    """Adapters that are trained instead of the weights."""
    experts: int = 1
    """Number of experts per layer; with 1 there is no router."""
    experts_per_token: int = 1
    """Number of experts per token."""
    balanced: bool = False
    """There is a load-balancing loss."""

    @property
    def query_width(self) -> int:
        """Total width of the query heads."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Total width of the key heads, and of the value heads."""
        return self.kv_heads * self.head_width

    def with_adapters(self, rank: int, targets: Iterable[str]) -> ModelShape:
        """Return the model with adapters and frozen base weights."""
        return replace(self, adapters=Adapters(rank, tuple(sorted(targets))))

    def with_length(self, sequence_length: int) -> ModelShape:
        """Return the model with another sequence length.

        Raises PlanError if the position embedding has fewer rows.
        """
        if 0 < self.learned_positions < sequence_length:
            raise PlanError(
                f"sequences of {sequence_length:,} tokens are longer than the model's"
                f" {self.learned_positions:,} learned positions",
                f"use at most {self.learned_positions}, or a model with rotary positions",
            )
        return replace(self, sequence_length=sequence_length)


def shape_of(architecture: Architecture | ModelShape) -> ModelShape:
    """Return the shape of an architecture; a `ModelShape` is returned unchanged."""
    if isinstance(architecture, ModelShape):
        return architecture
    return ModelShape(
        layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        heads=architecture.heads,
        kv_heads=architecture.key_value_heads,
        head_width=architecture.head_width,
        ffn_size=architecture.ffn_size,
        vocab_size=architecture.vocab_size,
        sequence_length=architecture.sequence_length,
        tied_embeddings=architecture.tied_embeddings,
        gated=architecture.activation == "swiglu",
        norm=architecture.norm,
        biases=architecture.biases == "all",
        qkv_biases=architecture.biases == "qkv",
        qk_norm=architecture.qk_norm,
        learned_positions=(
            architecture.sequence_length if architecture.positions == "learned" else 0
        ),
        experts=architecture.experts,
        experts_per_token=architecture.experts_per_token,
        balanced=architecture.experts > 1 and architecture.load_balancing_weight > 0,
    )


def gpt(layers: int, hidden: int, heads: int, vocab: int = 50257, length: int = 2048) -> ModelShape:
    """Return a GPT-2 or GPT-3 style shape (Brown et al., 2020, arXiv:2005.14165, table 2.1)."""
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        ffn_size=4 * hidden,
        vocab_size=vocab,
        sequence_length=length,
        tied_embeddings=True,
        gated=False,
        norm="layer",
        biases=True,
        learned_positions=length,
    )


def _nemotron4(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> ModelShape:
    """Squared ReLU, rotary positions, LayerNorm, untied (arXiv:2402.16819, 2406.11704)."""
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_width=hidden // heads,
        ffn_size=ffn,
        vocab_size=256000,
        sequence_length=4096,
        gated=False,
        norm="layer",
    )


SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        **{name: shape_of(architecture) for name, architecture in PRESETS.items()},
        # With the published vocabularies, which the presets pad.
        # Radford et al., 2019: the published weights, whose positions number 1,024.
        "gpt2-124m": gpt(12, 768, 12, length=1024),
        "gpt2-1.5b": gpt(48, 1600, 25, length=1024),
        # Brown et al., arXiv:2005.14165, table 2.1.
        "gpt3-6.7b": gpt(32, 4096, 32),
        "gpt3-175b": gpt(96, 12288, 96),
        "nemotron4-15b": _nemotron4(32, 6144, 48, 8, 24576),
        "nemotron4-340b": _nemotron4(96, 18432, 96, 8, 73728),
    }
)
"""Models by name: the presets of the API and plan-only models."""


def shape_named(name: str) -> ModelShape:
    """Return a model by name. Raises PlanError for an unknown one."""
    if name in SHAPES:
        return SHAPES[name]
    near = get_close_matches(name, SHAPES, n=1)
    raise PlanError(
        f"no model is named {name!r}",
        (f"did you mean {near[0]}? " if near else "") + "known are " + ", ".join(sorted(SHAPES)),
    )
