"""A decoder: attention and feed-forward blocks between an embedding and an output projection.

One class for the Llama, Mistral, Qwen and GPT families, which differ in the norm, the positions,
the activation, the biases and the number of experts. Written after the papers (Vaswani et al.,
arXiv:1706.03762; Brown et al., arXiv:2005.14165; Touvron et al., arXiv:2302.13971; Su et al.,
arXiv:2104.09864; Ainslie et al., arXiv:2305.13245; Shazeer, arXiv:2002.05202).

No parallelism here: a pipeline stage is the same class with a slice of the layers, and tensor and
context parallelism replace modules from the outside. So that this works, layers are keyed by their
number in the whole model, head counts are inferred from the width of the projections, and which
positions a module's tokens have is data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_core.api.job import Architecture
from llmtrain_trainer.model.experts import Mixture


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
    copies_embedding: bool = False
    """Holds the input embedding only because the output projection is tied to it."""

    @classmethod
    def stage(cls, shape: Architecture, index: int, count: int) -> Slice:
        """Return stage `index` of `count`: even runs of layers, longer runs first."""
        share, extra = divmod(shape.layers, count)
        first = index * share + min(index, extra)
        end = first + share + (1 if index < extra else 0)
        embeds, predicts = index == 0, index == count - 1
        copies = shape.tied_embeddings and predicts and not embeds
        return cls(first, end, embeds, predicts, copies)


class Rotary(nn.Module):
    """Rotary position embedding; rotates the two halves of each head (the Hugging Face order)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, length: int, theta: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.theta = width, theta
        self.register_buffer("cos", torch.empty(length, width, dtype=dtype), persistent=False)
        self.register_buffer("sin", torch.empty(length, width, dtype=dtype), persistent=False)
        self.fill(torch.arange(length))

    def fill(self, places: Tensor) -> None:
        """Compute the tables for tokens at `places`; a module on the meta device stays empty."""
        if self.cos.is_meta:
            return
        powers = torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        angles = torch.outer(places.double().cpu(), self.theta**-powers).repeat(1, 2)
        self.cos, self.sin = angles.cos().to(self.cos), angles.sin().to(self.sin)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate `x` of shape (batch, heads, length, width); computed in the tables' type."""
        length = x.size(-2)
        turned = torch.cat((-x[..., self.width // 2 :], x[..., : self.width // 2]), dim=-1)
        return (x * self.cos[:length] + turned * self.sin[:length]).to(x.dtype)


class CausalAttention(nn.Module):
    """Scaled dot products of every token with itself and the tokens before it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map (batch, heads, length, width) to the same shape; k and v may have fewer heads."""
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
        self.mix: nn.Module = CausalAttention()

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""

        def heads(y: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
            apart = y.view(*y.shape[:-1], -1, self.head_width)
            # normalised before it is turned: attention keeps the order of memory it is given
            return (apart if norm is None else norm(apart)).transpose(1, 2)

        q, k = heads(self.wq(x), self.q_norm), heads(self.wk(x), self.k_norm)
        v = heads(self.wv(x))
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        return self.wo(self.mix(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


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
        return self.lower(self.up(x), None if self.gate is None else self.gate(x))

    def lower(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """Map the inner activations (batch, length, inner) to (batch, length, hidden)."""
        inner = F.gelu(up, approximate="tanh") if gate is None else F.silu(gate) * up
        return self.down(inner)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.attention_norm = norm(shape)
        self.attention = Attention(shape)
        self.ffn_norm = norm(shape)
        self.ffn = FeedForward(shape) if shape.experts == 1 else Mixture(shape)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The whole model, or the slice of it that one pipeline stage holds."""

    places: Tensor
    """Position in the sequence of every token, shape (length,); all of them in order by default."""

    def __init__(self, shape: Architecture, part: Slice | None = None) -> None:
        super().__init__()
        part = part or Slice(0, shape.layers, embeds=True, predicts=True)
        self.shape, self.part = shape, part
        length, hidden = shape.sequence_length, shape.hidden_size
        self.register_buffer("places", torch.arange(length), persistent=False)
        self.rotary = _rotary(shape) if shape.positions == "rotary" else None
        embedding = part.embeds or part.copies_embedding
        self.tok_embeddings = nn.Embedding(shape.vocab_size, hidden) if embedding else None
        learned = part.embeds and shape.positions == "learned"
        self.pos_embeddings = nn.Embedding(length, hidden) if learned else None
        self.layers = nn.ModuleDict(
            {str(index): Block(shape) for index in range(part.first, part.end)}
        )
        self.norm = norm(shape) if part.predicts else None
        self.output = nn.Linear(hidden, shape.vocab_size, bias=False) if part.predicts else None
        self.tie()

    def blocks(self) -> Iterator[Block]:
        """Yield the slice's layers in order."""
        for block in self.layers.values():
            yield cast(Block, block)

    def tie(self) -> None:
        """Share the input embedding with the output projection where the architecture says so."""
        if self.shape.tied_embeddings and self.output is not None and self.tok_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def place(self, places: Tensor) -> None:
        """Say which positions the tokens have; fills the tables that depend on them."""
        self.places = places.to(self.places.device)
        if self.rotary is not None:
            self.rotary.fill(places)

    def forward(self, x: Tensor) -> Tensor:
        """Map token ids (batch, length), or a stage's input (batch, length, hidden), onwards.

        Returns logits (batch, length, vocab) where the slice predicts, else hidden states.
        """
        h = self.tok_embeddings(x) if self.tok_embeddings is not None and self.part.embeds else x
        if self.pos_embeddings is not None:
            h = h + self.pos_embeddings(self.places[: x.size(1)])
        for block in self.blocks():
            h = block(h, self.rotary)
        if self.norm is None or self.output is None:
            return h
        return self.output(self.norm(h))  # type: ignore[no-any-return]


def norm(shape: Architecture) -> nn.RMSNorm | nn.LayerNorm:
    """Return a norm of the residual stream: a scale, and for LayerNorm a shift."""
    kind = nn.RMSNorm if shape.norm == "rms" else nn.LayerNorm
    return kind(shape.hidden_size, eps=shape.norm_epsilon)


def _rotary(shape: Architecture) -> Rotary:
    wide = torch.get_default_dtype() == torch.float64
    return Rotary(
        shape.head_width,
        shape.sequence_length,
        shape.rope_theta,
        torch.float64 if wide else torch.float32,
    )
