"""The global gradient norm and clipping, over every dimension of the grid.

Works on local shards: torch's own norm of DTensors dispatches every parameter through Python and
all-reduces one mesh dimension after the other as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from llmtrain_trainer.parallel.mesh import Grid


def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, loss: Tensor, grid: Grid
) -> tuple[float, float]:
    """Scale gradients down to a global norm of `limit`; return (norm before, loss of the step).

    `loss` is this rank's share, already normalised by the step's tokens; it travels with the
    squared norm through the same all-reduces, which saves their latency.
    """
    shards = [_local(p.grad) for p in parameters if p.grad is not None]
    square = _local_square(parameters, grid.degree("tp"))
    both = torch.stack((square, loss.to(square.dtype)))
    norm_only, loss_only = both[:1], both[1:]
    for name, value in (("tp", norm_only), ("dp", both), ("rep", loss_only), ("pp", both)):
        if name in grid.groups:
            dist.all_reduce(value, group=grid.groups[name])
    norm, mean = both[0].sqrt(), both[1]
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    # a norm that is no number would make every gradient one, and hide where it came from
    torch._foreach_mul_(shards, torch.where(torch.isfinite(norm), factor, 1.0))
    numbers: list[float] = torch.stack((norm, mean)).tolist()
    return numbers[0], numbers[1]


def sum_losses(loss: Tensor, grid: Grid) -> float:
    """Add up the ranks' shares of a loss over data, context and pipeline ranks."""
    loss = loss.detach().clone()
    for name in ("dp", "rep", "pp"):
        if name in grid.groups:
            dist.all_reduce(loss, group=grid.groups[name])
    return float(loss)


def count_matches(misses: Tensor, grid: Grid) -> float:
    """Return of how many sequences no rank saw a miss; `misses` (local batch,) are this rank's."""
    misses = misses.clone()
    for name in ("cp", "pp"):  # ranks that share sequences
        if name in grid.groups:
            dist.all_reduce(misses, group=grid.groups[name])
    matches = (misses == 0).sum().double() / grid.degree("cp")
    for name in ("dp", "rep"):
        if name in grid.groups:
            dist.all_reduce(matches, group=grid.groups[name])
    return float(matches)


def _local_square(parameters: Sequence[nn.Parameter], tensor_degree: int) -> Tensor:
    """Return this rank's share of the squared norm.

    What tensor ranks hold in common (norm scales) is counted by each of them for its part.
    """
    split: list[Tensor] = []
    common: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (common if _replicated(parameter) else split).append(_local(parameter.grad))
    squares = [torch.nn.utils.get_total_norm(group).square() for group in (split, common) if group]
    if split and common:
        return squares[0] + squares[1] / tensor_degree
    return squares[0] / (tensor_degree if common else 1)


def _replicated(parameter: nn.Parameter) -> bool:
    """Tell whether all tensor ranks hold the same shard; without tensor parallelism it is moot."""
    if not isinstance(parameter, DTensor):
        return True
    names = parameter.device_mesh.mesh_dim_names or ()
    return "tp" not in names or isinstance(parameter.placements[names.index("tp")], Replicate)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
