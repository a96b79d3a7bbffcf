"""A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Written after the papers (Touvron et al., arXiv:2302.13971; Su et al., arXiv:2104.09864; Ainslie et
al., arXiv:2305.13245; Shazeer, arXiv:2002.05202). No parallelism here: a pipeline stage is the same
class with a slice of the layers, and tensor parallelism replaces parameters from the outside. So
that both work, layers are keyed by their number in the whole model and head counts are inferred
from the width of the projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_core.api.job import Architecture


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of the model a module holds."""

    first: int
    """Number of the first layer."""
    end: int
    """Number after the last layer."""
    embeds: bool
    """Holds the input embedding."""
    predicts: bool
    """Holds the final norm and the output projection."""

    @classmethod
    def stage(cls, layers: int, index: int, count: int) -> Slice:
        """Return stage `index` of `count`: even runs of layers, longer runs first."""
        share, extra = divmod(layers, count)
        first = index * share + min(index, extra)
        end = first + share + (1 if index < extra else 0)
        return cls(first, end, embeds=index == 0, predicts=index == count - 1)


class Rotary(nn.Module):
    """Rotary position embedding; rotates the two halves of each head (the Hugging Face order)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, length: int, theta: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.length, self.theta, self.dtype = width, length, theta, dtype
        self.register_buffer("cos", torch.empty(length, width, dtype=dtype), persistent=False)
        self.register_buffer("sin", torch.empty(length, width, dtype=dtype), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the tables; needed again after a module made on the meta device got storage."""
        if self.cos.is_meta:
            return
        powers = torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        angles = torch.outer(
            torch.arange(self.length, dtype=torch.float64), self.theta**-powers
        ).repeat(1, 2)
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Rotate `x` of shape (batch, heads, length, width); computed in the tables' type."""
        length = x.size(-2)
        turned = torch.cat((-x[..., self.width // 2 :], x[..., : self.width // 2]), dim=-1)
        return (x * self.cos[:length] + turned * self.sin[:length]).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        hidden, width = shape.hidden_size, shape.head_width
        self.head_width = width
        self.wq = nn.Linear(hidden, shape.heads * width, bias=False)
        self.wk = nn.Linear(hidden, shape.key_value_heads * width, bias=False)
        self.wv = nn.Linear(hidden, shape.key_value_heads * width, bias=False)
        self.wo = nn.Linear(shape.heads * width, hidden, bias=False)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""

        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:-1], -1, self.head_width).transpose(1, 2)

        q, k, v = rotary(heads(self.wq(x))), rotary(heads(self.wk(x))), heads(self.wv(x))
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
        )
        return self.wo(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.up = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.ffn = FeedForward(shape)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """The decoder, or the slice of it that one pipeline stage holds."""

    def __init__(self, shape: Architecture, part: Slice | None = None) -> None:
        super().__init__()
        part = part or Slice(0, shape.layers, embeds=True, predicts=True)
        self.shape, self.part = shape, part
        wide = torch.get_default_dtype() == torch.float64
        self.rotary = Rotary(
            shape.head_width,
            shape.sequence_length,
            shape.rope_theta,
            torch.float64 if wide else torch.float32,
        )
        self.tok_embeddings = (
            nn.Embedding(shape.vocab_size, shape.hidden_size) if part.embeds else None
        )
        self.layers = nn.ModuleDict(
            {str(index): Block(shape) for index in range(part.first, part.end)}
        )
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_epsilon) if part.predicts else None
        self.output = (
            nn.Linear(shape.hidden_size, shape.vocab_size, bias=False) if part.predicts else None
        )
        self.tie()

    def blocks(self) -> Iterator[Block]:
        """Yield the slice's layers in order."""
        for block in self.layers.values():
            yield cast(Block, block)

    def tie(self) -> None:
        """Share the input embedding with the output projection where the architecture says so."""
        if self.shape.tied_embeddings and self.output is not None and self.tok_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map token ids (batch, length), or a stage's input (batch, length, hidden), onwards.

        Returns logits (batch, length, vocab) where the slice predicts, else hidden states.
        """
        h = self.tok_embeddings(x) if self.tok_embeddings is not None else x
        for block in self.blocks():
            h = block(h, self.rotary)
        if self.norm is None or self.output is None:
            return h
        return self.output(self.norm(h))  # type: ignore[no-any-return]
