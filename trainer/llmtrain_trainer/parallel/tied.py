"""An embedding that the first stage of a pipeline looks up and the last one multiplies with.

The first stage owns it. The last stage has a copy, which takes the owner's values before every pass
and hands its gradient over after a backward pass; so optimizer, gradient norm and checkpoints know
one parameter, whatever the number of stages. Both hold equal shards, so shards are what travels.
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
    """This rank's part in it: owner, copy, both (in V shape) or neither."""

    def __init__(
        self, chunks: Sequence[Decoder], group: dist.ProcessGroup, owner: int, copy: int
    ) -> None:
        """`owner` and `copy` are the pipeline ranks of the first and the last stage."""
        self._owner = _weight([chunk for chunk in chunks if chunk.stage.has_embedding])
        self._copy = _weight([chunk for chunk in chunks if chunk.stage.has_embedding_copy])
        self._group, self._owner_rank, self._copy_rank = group, owner, copy

    @torch.no_grad()
    def update_copy(self) -> None:
        """Make the copy equal to the owner."""
        if self._owner is not None and self._copy is not None:
            local_shard(self._copy).copy_(local_shard(self._owner))
        elif self._owner is not None:
            dist.send(local_shard(self._owner), group=self._group, group_dst=self._copy_rank)
        elif self._copy is not None:
            dist.recv(local_shard(self._copy), group=self._group, group_src=self._owner_rank)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Add the copy's gradient to the owner's, and forget it."""
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
    """Return the sharded parameter: FSDP puts another in its place while a pass runs."""
    for chunk in chunks:
        if chunk.tok_embeddings is not None:
            return cast(nn.Parameter, chunk.tok_embeddings.weight)
    return None


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return a rank's shard of the gradient; a frozen embedding has none, which counts for zero."""
    if parameter.grad is None:
        return torch.zeros_like(local_shard(parameter))
    return local_shard(parameter.grad)
