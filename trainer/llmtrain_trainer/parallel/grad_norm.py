"""The global gradient norm and gradient clipping, over every dimension of the grid.

This works on local shards. torch's own norm of DTensors dispatches every parameter through Python
and also all-reduces one mesh dimension after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from llmtrain_trainer.parallel.dtensors import local_shard
from llmtrain_trainer.parallel.mesh import Grid


def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, loss: Tensor, grid: Grid
) -> tuple[float, float]:
    """Scale gradients to a global norm of at most `limit`; return (norm before, loss of the step).

    `loss` is this rank's share, already divided by the tokens of the step. It is reduced in the
    same all-reduces as the squared norm, which saves their latency.
    """
    shards = [local_shard(p.grad) for p in parameters if p.grad is not None]
    square = _local_square(parameters, grid.degree("tensor"))
    both = torch.stack((square, loss.to(square.dtype)))
    norm_only, loss_only = both[:1], both[1:]
    sums = (("tp", norm_only), ("fsdp", both), ("dp_replicate", loss_only), ("pp", both))
    for name, value in sums:
        if name in grid.groups:
            dist.all_reduce(value, group=grid.groups[name])
    norm, mean = both[0].sqrt(), both[1]
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    # a NaN norm would turn every gradient into NaN and hide the origin
    torch._foreach_mul_(shards, torch.where(torch.isfinite(norm), factor, 1.0))
    numbers: list[float] = torch.stack((norm, mean)).tolist()
    return numbers[0], numbers[1]


def sum_over_ranks(values: Tensor, grid: Grid) -> Tensor:
    """Return the sum of values (n,) over data, context and pipeline ranks."""
    return _sum(values, ("fsdp", "dp_replicate", "pp"), grid)


def sum_over_sequence(values: Tensor, grid: Grid) -> Tensor:
    """Return the sum of values (n,) over the ranks that share sequences: context and pipeline."""
    return _sum(values, ("cp", "pp"), grid)


def _sum(values: Tensor, names: Sequence[str], grid: Grid) -> Tensor:
    """Return the sum of values over the groups that exist."""
    values = values.detach().clone()
    for name in names:
        if name in grid.groups:
            dist.all_reduce(values, group=grid.groups[name])
    return values


def _local_square(parameters: Sequence[nn.Parameter], tensor_degree: int) -> Tensor:
    """Return this rank's share of the squared norm.

    Each tensor rank counts its share of the replicated parameters (norm scales).
    """
    split: list[Tensor] = []
    common: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (common if _replicated(parameter) else split).append(local_shard(parameter.grad))
    squares = [torch.nn.utils.get_total_norm(group).square() for group in (split, common) if group]
    if split and common:
        return squares[0] + squares[1] / tensor_degree
    return squares[0] / (tensor_degree if common else 1)


def _replicated(parameter: nn.Parameter) -> bool:
    """Return True if all tensor ranks hold the same shard, or if there are none."""
    if not isinstance(parameter, DTensor):
        return True
    names = parameter.device_mesh.mesh_dim_names or ()
    return "tp" not in names or isinstance(parameter.placements[names.index("tp")], Replicate)
