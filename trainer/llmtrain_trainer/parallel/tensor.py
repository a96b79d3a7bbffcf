"""Tensor and sequence parallelism of one model slice.

Column-wise then row-wise products (Shoeybi et al., arXiv:1909.08053); between them, norms and
residuals live on a shard of the sequence (Korthikanti et al., arXiv:2205.05198). Logits stay
sharded over the vocabulary: the loss is computed under `loss_parallel`.

Parameters are DTensors, so that FSDP, checkpoints and resharding know what a rank holds;
activations are plain tensors (why: `llmtrain_trainer.parallel.sequence`).
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from llmtrain_trainer.model.llama import Llama
from llmtrain_trainer.parallel.sequence import gather, scatter_sum

COLUMNS, ROWS = 0, 1
"""Axis of a weight (out, in) that is split: its outputs, or its inputs."""


def split_tensors(model: Llama, mesh: DeviceMesh) -> None:
    """Shard every matrix of the slice over `mesh`, in place; module and parameter names stay.

    Hidden states outside the products have shape (batch, length / tensor, hidden).
    """
    group = mesh.get_group()
    for block in model.blocks():
        block.attention_norm = SplitNorm(block.attention_norm, mesh)
        block.ffn_norm = SplitNorm(block.ffn_norm, mesh)
        for region, columns, row in (
            (block.attention, ("wq", "wk", "wv"), "wo"),
            (block.ffn, ("gate", "up"), "down"),
        ):
            for name in columns:
                setattr(region, name, SplitLinear(getattr(region, name), mesh, COLUMNS))
            setattr(region, row, SplitLinear(getattr(region, row), mesh, ROWS))
            _enclose(region, group)
    if model.tok_embeddings is not None:
        model.tok_embeddings = SplitEmbedding(model.tok_embeddings, mesh)
    if model.norm is not None and model.output is not None:
        model.norm = SplitNorm(model.norm, mesh)
        model.output = SplitOutput(model.output, mesh)
    model.tie()  # sharding replaced both parameters


class SplitLinear(nn.Linear):
    """A product with this rank's rows or columns of the weight."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh, axis: int) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False, device="meta")
        self.weight = _split(whole.weight, mesh, Shard(axis))

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to its columns of (.., out), or its columns of (.., in) to a partial sum."""
        return F.linear(x, _local(self.weight))


class SplitOutput(SplitLinear):
    """The output projection: whole sequence in, logits sharded over the vocabulary out."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(whole, mesh, COLUMNS)
        self._mesh = mesh

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length / tensor, hidden) to a DTensor (batch, length, vocab)."""
        logits = super().forward(gather(x, self._mesh.get_group()))
        return DTensor.from_local(logits, self._mesh, (Shard(-1),), run_check=False)


class SplitNorm(nn.RMSNorm):
    """A norm of this rank's part of the sequence; its scale is common, its gradient a part."""

    def __init__(self, whole: nn.RMSNorm, mesh: DeviceMesh) -> None:
        super().__init__(whole.normalized_shape, eps=whole.eps, device="meta")
        self.weight = _split(whole.weight, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length / tensor, hidden) to the same shape."""
        return F.rms_norm(x, self.normalized_shape, _local(self.weight, Partial()), self.eps)


class SplitEmbedding(nn.Embedding):
    """This rank's rows of the embedding; tokens of other ranks add zero."""

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh) -> None:
        super().__init__(whole.num_embeddings, whole.embedding_dim, device="meta")
        self.weight = _split(whole.weight, mesh, Shard(0))
        self._group = mesh.get_group()
        self._first = mesh.get_local_rank() * (whole.num_embeddings // mesh.size())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, length) to (batch, length / tensor, hidden)."""
        rows = _local(self.weight)
        place = tokens - self._first
        foreign = (place < 0) | (place >= rows.size(0))
        found = F.embedding(place.masked_fill(foreign, 0), rows)
        return scatter_sum(found.masked_fill(foreign.unsqueeze(-1), 0.0), self._group)


def _enclose(region: nn.Module, group: dist.ProcessGroup) -> None:
    """Gather the sequence before a region and sum its output into parts of the sequence after."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather(inputs[0], group), *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return scatter_sum(output, group)

    region.register_forward_pre_hook(before)
    region.register_forward_hook(after)


def _split(whole: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(whole.detach(), mesh, (placement,), src_data_rank=None))


def _local(weight: Tensor, gradient: Placement | None = None) -> Tensor:
    """Return a rank's shard for computing; `gradient`: how its gradient relates to the whole's.

    FSDP sums up gradients that are parts before it shards them.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=(gradient,) if gradient else None)
