"""An input embedding that is tied to the output projection, across pipeline stages.

The first stage owns the embedding. The last stage has a copy. The copy gets the owner's values
before every pass, and its gradient is added to the owner's after a backward pass. Optimizer,
gradient norm and checkpoints therefore see one parameter for any number of stages. Both stages hold
equal shards, so only shards are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.dtensors import local_shard


class TiedEmbedding:
    """This rank's role: owner, copy, both (V schedules) or neither."""

    def __init__(
        self, chunks: Sequence[Decoder], group: dist.ProcessGroup, owner: int, copy: int
    ) -> None:
        """`owner` and `copy` are the pipeline ranks of the first and the last stage."""
        self._owner = _weight([chunk for chunk in chunks if chunk.stage.has_embedding])
        self._copy = _weight([chunk for chunk in chunks if chunk.stage.has_embedding_copy])
        self._group, self._owner_rank, self._copy_rank = group, owner, copy

    @torch.no_grad()
    def update_copy(self) -> None:
        """Copy the owner's values to the copy."""
        if self._owner is not None and self._copy is not None:
            local_shard(self._copy).copy_(local_shard(self._owner))
        elif self._owner is not None:
            dist.send(local_shard(self._owner), group=self._group, group_dst=self._copy_rank)
        elif self._copy is not None:
            dist.recv(local_shard(self._copy), group=self._group, group_src=self._owner_rank)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Add the copy's gradient to the owner's gradient and clear it."""
        if self._owner is not None and self._copy is not None:
            _gradient(self._owner).add_(_gradient(self._copy))
        elif self._owner is not None:
            received = torch.empty_like(local_shard(self._owner))
            dist.recv(received, group=self._group, group_src=self._copy_rank)
            _gradient(self._owner).add_(received)
        elif self._copy is not None:
            dist.send(_gradient(self._copy), group=self._group, group_dst=self._owner_rank)
        if self._copy is not None:
            self._copy.grad = None


def _weight(chunks: Sequence[Decoder]) -> nn.Parameter | None:
    """Return the sharded parameter. FSDP replaces it by another one during a pass."""
    for chunk in chunks:
        if chunk.tok_embeddings is not None:
            return cast(nn.Parameter, chunk.tok_embeddings.weight)
    return None


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return this rank's shard of the gradient, or zeros if the embedding is frozen."""
    if parameter.grad is None:
        return torch.zeros_like(local_shard(parameter))
    return local_shard(parameter.grad)
