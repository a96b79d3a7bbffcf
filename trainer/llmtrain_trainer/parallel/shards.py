"""Parameters of which every rank of a mesh holds a shard, and the shard to compute with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor


def split(whole: Tensor, mesh: DeviceMesh, *placements: Placement) -> nn.Parameter:
    """Return a parameter that is spread over `mesh`, one placement for each of its dimensions."""
    return nn.Parameter(distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None))


def local(weight: Tensor, gradient: Placement | None = None) -> Tensor:
    """Return a rank's shard for computing; `gradient`: how its gradient relates to the whole's.

    FSDP sums up gradients that are parts before it shards them.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=(gradient,) if gradient else None)
