"""Tensor and sequence parallelism of a model chunk.

Column-parallel and then row-parallel linear layers (Shoeybi et al., arXiv:1909.08053). Between
them, norms and residuals work on a part of the sequence (Korthikanti et al., arXiv:2205.05198).
Logits stay sharded over the vocabulary: the loss is computed under `loss_parallel`.

Parameters are DTensors, for FSDP, checkpoints and resharding. Activations are plain tensors (see
`llmtrain_trainer.parallel.sequence`).
"""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from llmtrain_trainer.model.decoder import Decoder, FeedForward
from llmtrain_trainer.parallel.dtensors import distribute, local_shard
from llmtrain_trainer.parallel.sequence import all_gather, reduce_scatter

COLUMNS, ROWS = 0, 1
"""The sharded axis of a weight (out, in): its outputs, or its inputs."""


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh) -> None:
    """Shard every matrix over `mesh`, in place. Module and parameter names do not change.

    Hidden states outside the linear layers have shape (batch, length / tensor, hidden).
    """
    group = mesh.get_group()
    for block in model.blocks():
        regions: list[tuple[nn.Module, tuple[str, ...], str]]
        regions = [(block.attention, ("wq", "wk", "wv"), "wo")]
        if isinstance(block.ffn, FeedForward):  # experts: llmtrain_trainer.parallel.experts
            regions.append((block.ffn, ("gate", "up"), "down"))
        for region, columns, row in regions:
            for name in columns:
                if getattr(region, name) is not None:
                    setattr(region, name, ColumnParallelLinear(getattr(region, name), mesh))
            setattr(region, row, RowParallelLinear(getattr(region, row), mesh))
            _gather_before(region, group)
        _split_norms(block, ("attention_norm", "ffn_norm"), mesh)
        _split_norms(block.attention, ("q_norm", "k_norm"), mesh)
    if model.tok_embeddings is not None:
        model.tok_embeddings = VocabParallelEmbedding(model.tok_embeddings, mesh)
    if model.pos_embeddings is not None:
        model.pos_embeddings = SequenceParallelEmbedding(model.pos_embeddings, mesh)
    if model.norm is not None and model.output is not None:
        _split_norms(model, ("norm",), mesh)
        model.output = VocabParallelOutput(model.output, mesh)
    model.tie()  # sharding replaced both parameters


class ColumnParallelLinear(nn.Linear):
    """A linear layer with this rank's rows of the weight (out, in): a part of the outputs."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False, device="meta")
        self.mesh = mesh
        self.weight = distribute(whole.weight, mesh, Shard(COLUMNS))
        self.bias = None if whole.bias is None else distribute(whole.bias, mesh, Shard(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to this rank's part of (.., out)."""
        return F.linear(
            x, local_shard(self.weight), None if self.bias is None else local_shard(self.bias)
        )


class RowParallelLinear(nn.Linear):
    """A linear layer with this rank's columns of the weight (out, in), summed over ranks.

    The bias is added once, to this rank's part of the sequence, so its gradient is partial.
    """

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False, device="meta")
        self.mesh = mesh
        self.weight = distribute(whole.weight, mesh, Shard(ROWS))
        self.bias = None if whole.bias is None else distribute(whole.bias, mesh, Replicate())
        self._group = mesh.get_group()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, in / tensor) to (batch, length / tensor, out)."""
        part = reduce_scatter(self.partial_product(x), self._group)
        return part if self.bias is None else part + local_shard(self.bias, Partial())

    def partial_product(self, x: Tensor) -> Tensor:
        """Map this rank's part of (.., in) to a partial sum (.., out)."""
        return F.linear(x, local_shard(self.weight))


class VocabParallelOutput(ColumnParallelLinear):
    """The output projection. The logits are sharded over the vocabulary."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(whole, mesh)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length / tensor, hidden) to a DTensor (batch, length, vocab)."""
        logits = super().forward(all_gather(x, self.mesh.get_group()))
        return DTensor.from_local(logits, self.mesh, (Shard(-1),), run_check=False)


class SequenceParallelRMSNorm(nn.RMSNorm):
    """A norm of this rank's part of the sequence or heads, with partial gradients of its scale."""

    def __init__(self, whole: nn.RMSNorm, mesh: DeviceMesh) -> None:
        super().__init__(whole.normalized_shape, eps=whole.eps, device="meta")
        self.weight = distribute(whole.weight, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., hidden) to the same shape."""
        return F.rms_norm(x, self.normalized_shape, local_shard(self.weight, Partial()), self.eps)


class SequenceParallelLayerNorm(nn.LayerNorm):
    """A norm with a shift, otherwise like `SequenceParallelRMSNorm`."""

    def __init__(self, whole: nn.LayerNorm, mesh: DeviceMesh) -> None:
        super().__init__(whole.normalized_shape, eps=whole.eps, device="meta")
        self.weight = distribute(whole.weight, mesh, Replicate())
        self.bias = distribute(whole.bias, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., hidden) to the same shape."""
        scale, shift = local_shard(self.weight, Partial()), local_shard(self.bias, Partial())
        return F.layer_norm(x, self.normalized_shape, scale, shift, self.eps)


class VocabParallelEmbedding(nn.Embedding):
    """This rank's rows of the embedding. Tokens of other ranks add zero."""

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh) -> None:
        super().__init__(whole.num_embeddings, whole.embedding_dim, device="meta")
        self.weight = distribute(whole.weight, mesh, Shard(0))
        self._group = mesh.get_group()
        self._first = mesh.get_local_rank() * (whole.num_embeddings // mesh.size())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, length) to (batch, length / tensor, hidden)."""
        rows = local_shard(self.weight)
        index = tokens - self._first
        foreign = (index < 0) | (index >= rows.size(0))
        found = F.embedding(index.masked_fill(foreign, 0), rows)
        return reduce_scatter(found.masked_fill(foreign.unsqueeze(-1), 0.0), self._group)


class SequenceParallelEmbedding(nn.Embedding):
    """Learned positions of this rank's part of the sequence. The weight is replicated."""

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh) -> None:
        super().__init__(whole.num_embeddings, whole.embedding_dim, device="meta")
        self.weight = distribute(whole.weight, mesh, Replicate())
        self._rank, self._size = mesh.get_local_rank(), mesh.size()

    def forward(self, token_positions: Tensor) -> Tensor:
        """Map positions (.., length) to (.., length / tensor, hidden)."""
        own = token_positions.chunk(self._size, dim=-1)[self._rank]
        return F.embedding(own, local_shard(self.weight, Partial()))


def _split_norms(parent: nn.Module, names: tuple[str, ...], mesh: DeviceMesh) -> None:
    for name in names:
        whole = getattr(parent, name)
        if isinstance(whole, nn.RMSNorm):
            setattr(parent, name, SequenceParallelRMSNorm(whole, mesh))
        elif whole is not None:
            setattr(parent, name, SequenceParallelLayerNorm(cast(nn.LayerNorm, whole), mesh))


def _gather_before(region: nn.Module, group: dist.ProcessGroup) -> None:
    """All-gather the sequence before a region. The last linear layer reduce-scatters it."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (all_gather(inputs[0], group), *inputs[1:])

    region.register_forward_pre_hook(before)
