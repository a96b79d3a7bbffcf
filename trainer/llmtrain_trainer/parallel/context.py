"""Context parallelism: ranks share a sequence, and each rank has some of its tokens.

Every token attends to all earlier tokens, so with contiguous parts the first rank would be idle
most of the time. The sequence is split into twice as many chunks as ranks. A rank has one chunk
from the head and the mirrored one from the tail, so all ranks compute the same number of scores (as
in Llama 3, arXiv:2407.21783, section 3.3.2). Keys and values, which are small with grouped-query
attention, are all-gathered.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, causal_lower_right

from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.documents import Mask, masked_attention
from llmtrain_trainer.parallel.sequence import all_gather


def token_positions(length: int, rank: int, count: int) -> Tensor:
    """Return the positions of the tokens of context rank `rank` of `count`: head, then tail.

    `length` must be a multiple of 2 * `count`.
    """
    if count == 1:
        return torch.arange(length)
    stretches = query_stretches(length, rank, count)
    return torch.cat([torch.arange(each.start, each.stop) for each in stretches])


def apply_context_parallel(model: Decoder, group: dist.ProcessGroup) -> None:
    """Replace the core attention of every layer by `ContextAttention`, in place."""
    length = model.shape.sequence_length
    for block in model.blocks():
        block.attention.core_attention = ContextAttention(group, length)
    stretches = query_stretches(length, group.rank(), group.size())
    model.document_masks = replace(model.document_masks, queries=stretches)


def query_stretches(length: int, rank: int, count: int) -> tuple[range, ...]:
    """Return the head and the tail of the sequence that context rank `rank` of `count` has."""
    chunk = length // (2 * count)
    return tuple(
        range(number * chunk, (number + 1) * chunk) for number in (rank, 2 * count - 1 - rank)
    )


class ContextAttention(nn.Module):
    """Causal attention of this rank's tokens to the tokens of all ranks."""

    def __init__(self, group: dist.ProcessGroup, length: int) -> None:
        super().__init__()
        self._group, self._count = group, group.size()
        stretches = query_stretches(length, group.rank(), self._count)
        self._seen = tuple(stretch.stop for stretch in stretches)
        # created once: torch cannot create one while collectives are measured
        self._masks = tuple(causal_lower_right(len(each), each.stop) for each in stretches)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, masks: tuple[Mask, ...] | None = None
    ) -> Tensor:
        """Map (batch, heads, length / context, width) to the same shape.

        `masks` of the head and the tail keep attention inside documents.
        """
        k, v = self._whole(k), self._whole(v)
        parts = zip(q.chunk(2, dim=-2), self._seen, masks or self._masks, strict=True)
        return torch.cat(
            [self._attend(part, k[..., :seen, :], v[..., :seen, :], m) for part, seen, m in parts],
            dim=-2,
        )

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        if not isinstance(mask, CausalBias):
            return masked_attention(q, k, v, mask)
        grouped = q.size(1) != k.size(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

    def _whole(self, part: Tensor) -> Tensor:
        """Gather and reorder: (batch, heads, length / context, width) -> (.., length, ..)."""
        mixed = all_gather(part.transpose(1, 2).flatten(2), self._group)
        chunks = mixed.chunk(2 * self._count, dim=1)  # head and tail of rank 0, of rank 1, ...
        whole = torch.cat((*chunks[0::2], *reversed(chunks[1::2])), dim=1)
        return whole.view(*whole.shape[:2], -1, part.size(-1)).transpose(1, 2)
