"""Context parallelism: ranks that share one sequence, each with a part of its tokens.

Every token attends to those before it, so an even cut would leave the first rank idle most of the
time. The sequence is cut into twice as many chunks as there are ranks, and a rank has one from the
head and its mirror from the tail: all ranks compute equally many scores (as in Llama 3,
arXiv:2407.21783, section 3.3.2). Keys and values, which are few under grouped-query attention, are
gathered whole.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.sequence import gather


def places(length: int, rank: int, count: int) -> Tensor:
    """Return the positions of the tokens that one of `count` context ranks has: head, then tail.

    `length` must be a multiple of 2 `count`.
    """
    if count == 1:
        return torch.arange(length)
    chunks = torch.arange(length).chunk(2 * count)
    return torch.cat((chunks[rank], chunks[2 * count - 1 - rank]))


def share_sequences(model: Decoder, group: dist.ProcessGroup) -> None:
    """Make every attention of the slice see the whole sequence, in place."""
    for block in model.blocks():
        block.attention.mix = ContextAttention(group, model.shape.sequence_length)


class ContextAttention(nn.Module):
    """Causal attention of this rank's tokens to the tokens of all ranks."""

    def __init__(self, group: dist.ProcessGroup, length: int) -> None:
        super().__init__()
        self._group, self._count = group, group.size()
        chunk = length // (2 * self._count)
        numbers = group.rank(), 2 * self._count - 1 - group.rank()
        self._seen = tuple((number + 1) * chunk for number in numbers)
        # made once: torch cannot make one while collectives are metered
        self._masks = tuple(causal_lower_right(chunk, seen) for seen in self._seen)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map (batch, heads, length / context, width) to the same shape."""
        k, v = self._whole(k), self._whole(v)
        parts = [
            F.scaled_dot_product_attention(
                part,
                k[..., :seen, :],
                v[..., :seen, :],
                attn_mask=mask,
                enable_gqa=q.size(1) != k.size(1),
            )
            for part, seen, mask in zip(q.chunk(2, dim=-2), self._seen, self._masks, strict=True)
        ]
        return torch.cat(parts, dim=-2)

    def _whole(self, part: Tensor) -> Tensor:
        """Gather and put in order: (batch, heads, length / context, width) -> (.., length, ..)."""
        mixed = gather(part.transpose(1, 2).flatten(2), self._group)
        chunks = mixed.chunk(2 * self._count, dim=1)  # head and tail of rank 0, of rank 1, ...
        whole = torch.cat((*chunks[0::2], *reversed(chunks[1::2])), dim=1)
        return whole.view(*whole.shape[:2], -1, part.size(-1)).transpose(1, 2)
