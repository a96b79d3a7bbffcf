"""Attention inside the documents of a sequence: positions, masks and kernels.

A sequence may contain several documents. With document masks a token attends to itself and to
earlier tokens of its own document, and positions start at 0 in every document, so the result of a
document does not depend on what it is packed with (Krell et al., arXiv:2107.02027, section 3.2;
Zhao et al., arXiv:2402.13991).

A mask is one of two kinds. An additive mask (batch, 1, queries, keys) works everywhere. It costs
memory and time for all pairs of a sequence. A `RaggedMask` lists the documents for a kernel of
variable length, which computes the pairs of documents only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from llmtrain_trainer.runtime.ignore_index import PADDING


class RaggedMask(NamedTuple):
    """Runs of queries, each of one document, and the keys that every run attends to.

    The last query of a run is at the place of its last key.
    """

    query_ends: Tensor
    """Where runs begin and end in the queries of all sequences, int32 (runs + 1,)."""
    key_ends: Tensor
    """Where their keys begin and end among `keys`, int32 (runs + 1,)."""
    keys: Tensor | None
    """Places of the keys in (batch x keys,) that a run attends to; None for all of them."""


Mask = Tensor | RaggedMask


@dataclass(frozen=True, slots=True)
class MaskBuilder:
    """Builds the masks of the queries of one rank."""

    queries: tuple[range, ...]
    """Stretches of the sequence. A stretch needs the keys from the start of the sequence to its
    end."""
    dtype: torch.dtype
    """Data type of queries and keys."""
    ragged: bool = False
    """Build masks for the kernel of variable length."""

    def __call__(self, documents: Tensor) -> tuple[Mask, ...]:
        """Return a mask per stretch for the documents of whole sequences, (batch, length)."""
        if self.ragged:
            return tuple(ragged_mask(documents, stretch) for stretch in self.queries)
        return tuple(additive_mask(documents, stretch, self.dtype) for stretch in self.queries)


def document_numbers(tokens: Tensor, end: int, first: Sequence[int] = ()) -> Tensor:
    """Return the number of each token's document in its sequence, for token ids (batch, length).

    The token `end` is the last one of its document, and `first` begin the next one. They may be
    `end`, too: in some models, the same token begins and ends a text.
    """
    ends = tokens == end
    for offset, token in enumerate(first[: tokens.size(-1)], 1):
        ends[:, :-offset] &= tokens[:, offset:] == token
    return F.pad(ends.cumsum(dim=-1)[:, :-1], (1, 0))


def document_positions(documents: Tensor) -> Tensor:
    """Return the position of each token in its document: (batch, length) -> (batch, length)."""
    index = torch.arange(documents.size(-1), device=documents.device).expand_as(documents)
    return index - index.masked_fill(~_begins(documents), 0).cummax(dim=-1).values


def attention_span(documents: Tensor) -> float:
    """Return the mean over the tokens of the length of their document. Padding is left out."""
    runs = _begins(documents).flatten().cumsum(dim=0)
    lengths = runs[documents.flatten() != PADDING].bincount().double()
    return float((lengths * lengths).sum() / lengths.sum())


def _begins(documents: Tensor) -> Tensor:
    """Return True for the first token of each document: (batch, length) -> (batch, length)."""
    return F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)


def additive_mask(documents: Tensor, queries: range, dtype: torch.dtype) -> Tensor:
    """Return 0 for the keys that a query attends to and -inf for others, (batch, 1, queries, keys).

    The tokens of padding attend to each other, so that no row is empty.
    """
    index = torch.arange(queries.stop, device=documents.device)
    own = slice(queries.start, queries.stop)
    later = index[own].unsqueeze(-1) < index
    other = documents[:, own].unsqueeze(-1) != documents[:, : queries.stop].unsqueeze(-2)
    mask = torch.zeros(other.shape, dtype=dtype, device=documents.device)
    return mask.masked_fill_(other | later, float("-inf")).unsqueeze(1)


def ragged_mask(documents: Tensor, queries: range) -> RaggedMask:
    """Return the runs of a stretch of queries. A document that begins earlier has more keys."""
    positions = document_positions(documents[:, : queries.stop])
    own = positions[:, queries.start :]
    begins = own == 0
    begins[:, 0] = True
    first = begins.flatten().nonzero().flatten()
    ends = F.pad(first, (0, 1), value=begins.numel())
    key_ends = F.pad((ends.diff() + own.flatten()[first]).cumsum(dim=0), (1, 0))
    keys = None
    if queries.start:
        index = torch.arange(queries.stop, device=documents.device)
        needed = index >= queries.start - own[:, :1]
        keys = needed.flatten().nonzero().flatten()
    return RaggedMask(ends.int(), key_ends.int(), keys)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Map queries (batch, heads, queries, width) to the same shape. Keys may have fewer heads."""
    grouped = q.size(1) != k.size(1)
    if isinstance(mask, RaggedMask):
        return _ragged_attention(q, k, v, mask, grouped)
    if grouped and q.is_cuda:  # the kernel that takes a mask has no groups
        k, v = (each.repeat_interleave(q.size(1) // k.size(1), dim=1) for each in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def _ragged_attention(q: Tensor, k: Tensor, v: Tensor, mask: RaggedMask, grouped: bool) -> Tensor:
    batch, heads, count, width = q.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
    if mask.keys is not None:
        key, value = key[mask.keys], value[mask.keys]
    out = varlen_attn(
        query,
        key,
        value,
        mask.query_ends,
        mask.key_ends,
        count,
        k.size(2),
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    return out.view(batch, count, heads, width).transpose(1, 2)  # type: ignore[union-attr]
