"""Copies of a sharded model: HSDP with the slow dimension in our hands.

FSDP shards over the data ranks only and calls a hook with every flat, reduce-scattered shard of
gradients, once per unit and optimizer step. Summing it over the copies there gives the same result
as FSDP on two dimensions, composes with tensor and pipeline parallelism, and is the one place where
the traffic between copies can be changed.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def sum_over_copies(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Make every FSDP unit of `model` sum its shard of gradients over `group`."""

    def add_up(shard: Tensor) -> None:
        dist.all_reduce(shard, group=group)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_all_reduce_hook(add_up)
