"""Low-rank adapters for any layout, and merging them into the weights.

For a column-parallel linear layer, every tensor rank has the whole A, and B is split by rows like
the weight. For a row-parallel linear layer, A is split by columns like the weight, and every rank
has the whole B. The adapter's output is then a term of the sum that the ranks compute anyway. So
adapters add no collective to the forward pass. FSDP shards them with their layer, next to the
frozen weights. Only adapters have gradients and optimizer state, so only these are communicated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from llmtrain_trainer.config import LoraConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.lora import Adapter, attach_adapter, layers_with_adapters, target_layers
from llmtrain_trainer.parallel.dtensors import distribute, local_shard, shard_like
from llmtrain_trainer.parallel.tensor import ColumnParallelLinear, RowParallelLinear


class ColumnAdapter(Adapter):
    """Adapter of a column-parallel layer: A is replicated with partial gradients, B is sharded."""

    def __init__(self, whole: Adapter, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.scale = whole.scale
        self.a = distribute(whole.a, mesh, Replicate())
        self.b = distribute(whole.b, mesh, Shard(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to this rank's part of (.., out)."""
        return self.project(x, local_shard(self.a, Partial()), local_shard(self.b))


class RowAdapter(Adapter):
    """Adapter of a row-parallel layer: A is sharded, B is replicated with partial gradients."""

    def __init__(self, whole: Adapter, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.scale = whole.scale
        self.a = distribute(whole.a, mesh, Shard(1))
        self.b = distribute(whole.b, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Map this rank's part of (.., in) to a partial sum (.., out)."""
        return self.project(x, local_shard(self.a), local_shard(self.b, Partial()))


def apply_lora(model: Decoder, lora: LoraConfig) -> None:
    """Freeze the weights of a model chunk and attach adapters to its linear layers."""
    model.requires_grad_(False)
    for linear in list(target_layers(model, lora.targets)):
        with torch.device("meta"):
            inputs, outputs = linear.in_features, linear.out_features
            adapter = Adapter(inputs, outputs, lora.rank, lora.alpha / lora.rank)
            adapter.to(linear.weight.dtype)
        if isinstance(linear, RowParallelLinear):
            attach_adapter(linear, RowAdapter(adapter, linear.mesh), "partial_product")
        elif isinstance(linear, ColumnParallelLinear):
            attach_adapter(linear, ColumnAdapter(adapter, linear.mesh))
        else:
            attach_adapter(linear, adapter)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every adapter to its weight, W + scale * B A, and set B to zero.

    Collective over the ranks of a pipeline stage. The peak memory is one whole matrix, as at
    initialization.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation may leave gathered copies
    for linear, adapter in layers_with_adapters(model):
        change = adapter.scale * (_whole(adapter.b) @ _whole(adapter.a))
        weight = linear.weight
        if isinstance(weight, DTensor):
            weight.to_local().add_(shard_like(change, weight))
        else:
            weight.add_(change)
        local_shard(adapter.b).zero_()


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
