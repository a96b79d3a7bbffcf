"""Parameters that are DTensors, and the local shard that a rank computes with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor


def distribute(whole: Tensor, mesh: DeviceMesh, *placements: Placement) -> nn.Parameter:
    """Return a parameter distributed over `mesh`, with one placement per mesh dimension."""
    return nn.Parameter(distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None))


def local_shard(weight: Tensor, gradient: Placement | None = None) -> Tensor:
    """Return this rank's shard of a weight. `gradient` is the placement of its gradient.

    FSDP sums `Partial` gradients before it shards them.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=(gradient,) if gradient else None)


def shard_like(whole: Tensor, parameter: DTensor) -> Tensor:
    """Return this rank's shard of `whole`, placed like `parameter`. Every rank has `whole`."""
    sharded = distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    return sharded.to_local()
