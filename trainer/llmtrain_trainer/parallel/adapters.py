"""Low-rank adapters on any layout, and what they come to when they are merged.

Beside a product split by columns, A is whole on every tensor rank and B split by rows, like the
weight; beside one split by rows, A is split by columns, like the weight, and B is whole: the
adapter's output is then a part of the sum that the ranks form anyway. So adapters cost no
collective in a forward pass. FSDP shards them with the layer they are in, frozen weights beside
them; gradients, and so optimizer state and their traffic, exist for adapters only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from llmtrain_trainer.config import LoraConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.lora import Adapter, adapted, put_beside, targeted
from llmtrain_trainer.parallel.shards import local, split
from llmtrain_trainer.parallel.tensor import SplitColumns, SplitRows


class ColumnAdapter(Adapter):
    """Beside a product of the whole input: A common, its gradient a part; B this rank's rows."""

    def __init__(self, whole: Adapter, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.scale = whole.scale
        self.a = split(whole.a, mesh, Replicate())
        self.b = split(whole.b, mesh, Shard(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to this rank's part of (.., out)."""
        return self.product(x, local(self.a, Partial()), local(self.b))


class RowAdapter(Adapter):
    """Beside a product of a part of the input: A this rank's columns; B common, in parts."""

    def __init__(self, whole: Adapter, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.scale = whole.scale
        self.a = split(whole.a, mesh, Shard(1))
        self.b = split(whole.b, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Map this rank's part of (.., in) to its part of a sum (.., out)."""
        return self.product(x, local(self.a), local(self.b, Partial()))


def adapt(model: Decoder, lora: LoraConfig) -> None:
    """Freeze a slice of the model, split or whole, and put adapters beside its products."""
    model.requires_grad_(False)
    for product in list(targeted(model, lora.targets)):
        with torch.device("meta"):
            inputs, outputs = product.in_features, product.out_features
            adapter = Adapter(inputs, outputs, lora.rank, lora.alpha / lora.rank)
            adapter.to(product.weight.dtype)
        if isinstance(product, SplitRows):
            put_beside(product, RowAdapter(adapter, product.mesh), "multiply")
        elif isinstance(product, SplitColumns):
            put_beside(product, ColumnAdapter(adapter, product.mesh))
        else:
            put_beside(product, adapter)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every adapter into its product's weight, W + scale * B A, and set it to zero.

    Collective over the ranks of a pipeline stage; the peak is one whole matrix, as at the start.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what an evaluation has left gathered is a copy
    for product, adapter in adapted(model):
        change = adapter.scale * (_whole(adapter.b) @ _whole(adapter.a))
        weight = product.weight
        if isinstance(weight, DTensor):
            mine = distribute_tensor(
                change, weight.device_mesh, weight.placements, src_data_rank=None
            )
            weight.to_local().add_(mine.to_local())
        else:
            weight.add_(change)
        (adapter.b.to_local() if isinstance(adapter.b, DTensor) else adapter.b).zero_()


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
