"""Collectives along the sequence with their gradients, at both ends of a tensor-parallel region.

They use plain tensors and one backend call each. With DTensor activations they would cost several
times the host time of a small model's matrix products, which only a GPU that is far behind its host
can hide.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the whole sequence from the parts of all ranks: (b, l / n, h) -> (b, l, h).

    The gradient is reduce-scattered: each rank computed it with its shard of the weights.
    """
    return _AllGather.apply(part, group)  # type: ignore[no-any-return]


def reduce_scatter(partial: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's part of the sum over ranks: (b, l, h) -> (b, l / n, h).

    The gradient is all-gathered.
    """
    return _ReduceScatter.apply(partial, group)  # type: ignore[no-any-return]


def _all_gather_tensor(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    size = group.size()
    batch, length, hidden = part.shape
    parts = part.new_empty(size * batch, length, hidden)
    dist.all_gather_single(parts, part.contiguous(), group=group)
    return parts.view(size, batch, length, hidden).transpose(0, 1).reshape(batch, -1, hidden)


def _reduce_scatter_tensor(partial: Tensor, group: dist.ProcessGroup) -> Tensor:
    size = group.size()
    batch, length, hidden = partial.shape
    by_rank = partial.view(batch, size, length // size, hidden).transpose(0, 1).contiguous()
    part = partial.new_empty(batch, length // size, hidden)
    dist.reduce_scatter_single(part, by_rank.view(-1, length // size, hidden), group=group)
    return part


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather_tensor(part, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter_tensor(gradients[0].contiguous(), ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scatter_tensor(partial.contiguous(), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_gather_tensor(gradients[0], ctx.group), None
