"""Context parallelism: ranks share a sequence, and each rank has some of its tokens.

Every token attends to all earlier tokens, so with contiguous parts the first rank would be idle
most of the time. The sequence is split into twice as many chunks as ranks. A rank has one chunk
from the head and the mirrored one from the tail, so all ranks compute the same number of scores (as
in Llama 3, arXiv:2407.21783, section 3.3.2). Keys and values, which are small with grouped-query
attention, are all-gathered.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.sequence import all_gather


def token_positions(length: int, rank: int, count: int) -> Tensor:
    """Return the positions of the tokens of context rank `rank` of `count`: head, then tail.

    `length` must be a multiple of 2 * `count`.
    """
    if count == 1:
        return torch.arange(length)
    chunks = torch.arange(length).chunk(2 * count)
    return torch.cat((chunks[rank], chunks[2 * count - 1 - rank]))


def apply_context_parallel(model: Decoder, group: dist.ProcessGroup) -> None:
    """Replace the core attention of every layer by `ContextAttention`, in place."""
    for block in model.blocks():
        block.attention.core_attention = ContextAttention(group, model.shape.sequence_length)


class ContextAttention(nn.Module):
    """Causal attention of this rank's tokens to the tokens of all ranks."""

    def __init__(self, group: dist.ProcessGroup, length: int) -> None:
        super().__init__()
        self._group, self._count = group, group.size()
        chunk = length // (2 * self._count)
        numbers = group.rank(), 2 * self._count - 1 - group.rank()
        self._seen = tuple((number + 1) * chunk for number in numbers)
        # created once: torch cannot create one while collectives are measured
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
        """Gather and reorder: (batch, heads, length / context, width) -> (.., length, ..)."""
        mixed = all_gather(part.transpose(1, 2).flatten(2), self._group)
        chunks = mixed.chunk(2 * self._count, dim=1)  # head and tail of rank 0, of rank 1, ...
        whole = torch.cat((*chunks[0::2], *reversed(chunks[1::2])), dim=1)
        return whole.view(*whole.shape[:2], -1, part.size(-1)).transpose(1, 2)
