"""A decoder: attention and feed-forward blocks between an embedding and an output projection.

One class serves the Llama, Mistral, Qwen and GPT families, which differ in the norm, the positions,
the activation, the biases and the number of experts. Written after the papers (Vaswani et al.,
arXiv:1706.03762; Brown et al., arXiv:2005.14165; Touvron et al., arXiv:2302.13971; Su et al.,
arXiv:2104.09864; Ainslie et al., arXiv:2305.13245; Shazeer, arXiv:2002.05202).

There is no parallelism here. A pipeline stage is the same class with some of the layers. Tensor and
context parallelism replace modules from outside. Therefore layers are keyed by their index in the
whole model, head counts are inferred from the width of the projections, and the positions of the
tokens are data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_core.api.model import Architecture, RopeScaling
from llmtrain_trainer.model.documents import (
    Mask,
    MaskBuilder,
    document_positions,
    masked_attention,
)
from llmtrain_trainer.model.experts import Examples, MixtureOfExperts


@dataclass(frozen=True, slots=True)
class StageSpec:
    """The layers and embeddings of one pipeline stage."""

    first_layer: int
    """Index of the first layer."""
    end_layer: int
    """Index after the last layer."""
    has_embedding: bool
    """The stage has the input embedding."""
    has_output: bool
    """The stage has the final norm and the output projection."""
    has_embedding_copy: bool = False
    """The stage has a copy of the input embedding because the output projection is tied to it."""

    @classmethod
    def of_stage(cls, shape: Architecture, index: int, count: int) -> StageSpec:
        """Return stage `index` of `count`. Layers are split evenly; longer stages come first."""
        share, extra = divmod(shape.layers, count)
        first_layer = index * share + min(index, extra)
        end_layer = first_layer + share + (1 if index < extra else 0)
        has_embedding, has_output = index == 0, index == count - 1
        copies = shape.tied_embeddings and has_output and not has_embedding
        return cls(first_layer, end_layer, has_embedding, has_output, copies)


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Tables of a rotary position embedding for the tokens of a batch.

    FSDP casts the tensors in the arguments of a block. These stay as they are: an argument of this
    type is opaque to it.
    """

    cos: Tensor
    """(length, width), or (batch, 1, length, width)."""
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate `x` of shape (batch, heads, length, width), in the dtype of the tables."""
        half = x.size(-1) // 2
        rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return (x * self.cos + rotated * self.sin).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding of the two halves of each head (the Hugging Face order)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        width: int,
        length: int,
        theta: float,
        dtype: torch.dtype,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self.width, self.theta, self.scaling = width, theta, scaling
        self.register_buffer("cos", torch.empty(length, width, dtype=dtype), persistent=False)
        self.register_buffer("sin", torch.empty(length, width, dtype=dtype), persistent=False)
        self.fill(torch.arange(length))

    def fill(self, token_positions: Tensor) -> None:
        """Compute the tables for tokens at `token_positions`. On the meta device, do nothing."""
        if not self.cos.is_meta:
            tables = self.at(token_positions.cpu())
            self.cos, self.sin = tables.cos, tables.sin

    def at(self, token_positions: Tensor) -> RotaryTables:
        """Return the tables of tokens at positions (..) as (.., width), on the module's device."""
        powers = torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        frequencies = scaled_frequencies(self.theta**-powers, self.scaling)
        angles = token_positions.double().unsqueeze(-1) * frequencies.to(token_positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return RotaryTables(angles.cos().to(self.cos), angles.sin().to(self.sin))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate `x` of shape (batch, heads, length, width), in the dtype of the tables."""
        length = x.size(-2)
        return RotaryTables(self.cos[:length], self.sin[:length])(x)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    """Return rotary frequencies (radians per token) as Llama 3.1 scales them.

    With t = turns in the original length: t below `low_freq_factor` is divided by `factor`, above
    `high_freq_factor` it is kept, and between them it is interpolated (Grattafiori et al.,
    arXiv:2407.21783, and the published configuration `rope_type: llama3`).
    """
    if scaling is None:
        return frequencies
    turns = scaling.original_sequence_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


class CausalAttention(nn.Module):
    """Scaled dot-product attention of every token to itself and earlier tokens."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, masks: tuple[Mask, ...] | None = None
    ) -> Tensor:
        """Map (batch, heads, length, width) to the same shape. `k` and `v` may have fewer heads.

        `masks` has one mask, which keeps attention inside documents.
        """
        if masks is not None:
            return masked_attention(q, k, v, *masks)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
        )


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        hidden, width = shape.hidden_size, shape.head_width
        biased = shape.biases != "none"
        self.head_width = width
        self.wq = nn.Linear(hidden, shape.heads * width, bias=biased)
        self.wk = nn.Linear(hidden, shape.key_value_heads * width, bias=biased)
        self.wv = nn.Linear(hidden, shape.key_value_heads * width, bias=biased)
        self.wo = nn.Linear(shape.heads * width, hidden, bias=shape.biases == "all")
        self.q_norm = nn.RMSNorm(width, eps=shape.norm_epsilon) if shape.qk_norm else None
        self.k_norm = nn.RMSNorm(width, eps=shape.norm_epsilon) if shape.qk_norm else None
        self.core_attention: nn.Module = CausalAttention()

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | RotaryTables | None,
        masks: tuple[Mask, ...] | None = None,
    ) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""

        def heads(y: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
            split = y.view(*y.shape[:-1], -1, self.head_width)
            # normalize before the transpose: attention keeps the memory layout of its inputs
            return (split if norm is None else norm(split)).transpose(1, 2)

        q, k = heads(self.wq(x), self.q_norm), heads(self.wk(x), self.k_norm)
        v = heads(self.wv(x))
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        inputs = (q, k, v) if masks is None else (q, k, v, masks)
        return self.wo(self.core_attention(*inputs).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)), or GELU, down(gelu(up(x)))."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        hidden, inner, biased = shape.hidden_size, shape.ffn_size, shape.biases == "all"
        gated = shape.activation == "swiglu"
        self.gate = nn.Linear(hidden, inner, bias=biased) if gated else None
        self.up = nn.Linear(hidden, inner, bias=biased)
        self.down = nn.Linear(inner, hidden, bias=biased)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        return self.down_project(self.up(x), None if self.gate is None else self.gate(x))

    def down_project(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """Map the inner activations (batch, length, inner) to (batch, length, hidden)."""
        inner = F.gelu(up, approximate="tanh") if gate is None else F.silu(gate) * up
        return self.down(inner)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual connection."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.attention_norm = norm(shape)
        self.attention = Attention(shape)
        self.ffn_norm = norm(shape)
        self.ffn = FeedForward(shape) if shape.experts == 1 else MixtureOfExperts(shape)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | RotaryTables | None,
        masks: tuple[Mask, ...] | None = None,
        examples: Examples | None = None,
    ) -> Tensor:
        """Map (batch, length, hidden) to the same shape. Only experts take `examples`."""
        x = x + self.attention(self.attention_norm(x), rotary, masks)
        normed = self.ffn_norm(x)
        if examples is None:
            return x + self.ffn(normed)  # type: ignore[no-any-return]
        return x + self.ffn(normed, examples)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The whole model, or the layers of one pipeline stage."""

    token_positions: Tensor
    """Position of every token in the sequence, shape (length,). By default 0, 1, 2, ..."""

    def __init__(self, shape: Architecture, stage: StageSpec | None = None) -> None:
        super().__init__()
        stage = stage or StageSpec(0, shape.layers, has_embedding=True, has_output=True)
        self.shape, self.stage = shape, stage
        length, hidden = shape.sequence_length, shape.hidden_size
        self.register_buffer("token_positions", torch.arange(length), persistent=False)
        self.document_masks = MaskBuilder((range(length),), torch.get_default_dtype())
        self.rotary = _rotary(shape) if shape.positions == "rotary" else None
        embedding = stage.has_embedding or stage.has_embedding_copy
        self.tok_embeddings = nn.Embedding(shape.vocab_size, hidden) if embedding else None
        learned = stage.has_embedding and shape.positions == "learned"
        self.pos_embeddings = nn.Embedding(length, hidden) if learned else None
        self.layers = nn.ModuleDict(
            {str(index): Block(shape) for index in range(stage.first_layer, stage.end_layer)}
        )
        self.norm = norm(shape) if stage.has_output else None
        self.output = nn.Linear(hidden, shape.vocab_size, bias=False) if stage.has_output else None
        self.tie()

    def blocks(self) -> Iterator[Block]:
        """Yield the layers of this stage in order."""
        for block in self.layers.values():
            yield cast(Block, block)

    def tie(self) -> None:
        """Share the weight of the input embedding with the output projection if they are tied."""
        if self.shape.tied_embeddings and self.output is not None and self.tok_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def set_token_positions(self, token_positions: Tensor) -> None:
        """Set the positions of the tokens and compute the tables that depend on them."""
        self.token_positions = token_positions.to(self.token_positions.device)
        if self.rotary is not None:
            self.rotary.fill(token_positions)

    def inside(self, documents: Tensor) -> tuple[RotaryTables | None, tuple[Mask, ...], Tensor]:
        """Return what keeps documents apart: rotary tables, masks and positions of the tokens.

        `documents` are numbers of documents (batch, whole length). The positions have the shape
        (batch, length).
        """
        positions = document_positions(documents)[:, self.token_positions]
        rotation = None
        if self.rotary is not None:
            rotation = self.rotary.at(positions.unsqueeze(1))
        return rotation, self.document_masks(documents), positions

    def forward(
        self, x: Tensor, documents: Tensor | None = None, examples: Tensor | None = None
    ) -> Tensor:
        """Map token ids (batch, length) or the previous stage's output (batch, length, hidden).

        `documents` (batch, whole length) are numbers of the documents inside which attention and
        positions stay. By default, a sequence is one document. `examples` (batch, whole length) are
        numbers of the examples for the load-balancing loss of experts, with padding as -1. Return
        logits (batch, length, vocab) from the last stage, hidden states from the others.
        """
        positions = self.token_positions[: x.size(1)]
        rotary: Rotary | RotaryTables | None = self.rotary
        masks = None
        if documents is not None:
            rotary, masks, positions = self.inside(documents)
        h = (
            self.tok_embeddings(x)
            if self.tok_embeddings is not None and self.stage.has_embedding
            else x
        )
        if self.pos_embeddings is not None:
            h = h + self.pos_embeddings(positions)
        balanced = None
        if examples is not None and self.shape.experts > 1:
            balanced = Examples.of(examples, self.token_positions)
        for block in self.blocks():
            h = block(h, rotary, masks, balanced)
        if self.norm is None or self.output is None:
            return h
        return self.output(self.norm(h))  # type: ignore[no-any-return]


def norm(shape: Architecture) -> nn.RMSNorm | nn.LayerNorm:
    """Return a norm of the residual stream: with a scale, and for LayerNorm also a shift."""
    kind = nn.RMSNorm if shape.norm == "rms" else nn.LayerNorm
    return kind(shape.hidden_size, eps=shape.norm_epsilon)


def _rotary(shape: Architecture) -> Rotary:
    wide = torch.get_default_dtype() == torch.float64
    return Rotary(
        shape.head_width,
        shape.sequence_length,
        shape.rope_theta,
        torch.float64 if wide else torch.float32,
        shape.rope_scaling,
    )
