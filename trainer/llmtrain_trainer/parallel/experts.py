"""Expert parallelism: neighboring data ranks share the experts of every layer.

The hidden state of a token is sent to the ranks of its experts, and their outputs are sent back,
with two all-to-alls each way (Lepikhin et al., arXiv:2006.16668). Nothing is padded and no token is
dropped. Tensor ranks hold a shard of the inner width of every expert. FSDP shards the experts of an
expert rank over the remaining data ranks, along the hidden size, because the other two axes are
taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Replicate, Shard

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.model.experts import (
    ExpertDispatch,
    Experts,
    LoadBalancingLoss,
    MixtureOfExperts,
    Router,
    Routes,
)
from llmtrain_trainer.parallel.dtensors import distribute, local_shard
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.sequence import all_gather, reduce_scatter


def moe_layers(model: Decoder) -> list[MixtureOfExperts]:
    """Return the mixture-of-experts layers of a model chunk, in order."""
    return [block.ffn for block in model.blocks() if isinstance(block.ffn, MixtureOfExperts)]


def apply_expert_parallel(model: Decoder, run: RunConfig, grid: Grid) -> None:
    """Distribute the experts of a model chunk over expert and tensor ranks, in place."""
    for moe in moe_layers(model):
        if grid.expert_mesh is not None:
            moe.experts = ParallelExperts(moe.experts, grid.expert_mesh["ep", "tp"])
            moe.dispatch = AllToAllDispatch(grid.groups["ep"])
        elif "tp" in grid.groups:
            moe.experts = ParallelExperts(moe.experts, grid.mesh["tp"])
        if "tp" in grid.groups:
            moe.router = ParallelRouter(moe.router, grid.mesh["tp"])
            _add_sequence_collectives(moe, grid.groups["tp"])
        if moe.load_balancing_loss is not None:
            moe.load_balancing_loss = ParallelLoadBalancingLoss(run, grid)


def expert_shard_placement(experts: Experts) -> Callable[[nn.Parameter], Shard]:
    """Return the FSDP placement of the experts' parameters: sharded along the hidden size."""
    return lambda parameter: Shard(1 if parameter is experts.down else 2)


class ParallelExperts(Experts):
    """The experts of this rank, and this rank's shard of their inner width."""

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        inner_first = {"ep": Shard(0), "tp": Shard(1)}
        inner_last = {"ep": Shard(0), "tp": Shard(2)}
        names = mesh.mesh_dim_names or ()
        first, last = ([axes[name] for name in names] for axes in (inner_first, inner_last))
        self.gate = None if whole.gate is None else distribute(whole.gate, mesh, *first)
        self.up = distribute(whole.up, mesh, *first)
        self.down = distribute(whole.down, mesh, *last)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """See `Experts`. With tensor ranks, the output is a partial sum."""
        gate = None if self.gate is None else local_shard(self.gate)
        return self.run(rows, counts, local_shard(self.up), gate, local_shard(self.down))


class ParallelRouter(Router):
    """The whole router, on all tokens of a tensor group. Its gradient is partial.

    A tensor rank computes partial outputs of the experts, and therefore partial gradients of the
    routing weights.
    """

    def __init__(self, whole: Router, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.experts_per_token = whole.experts_per_token
        self.weight = distribute(whole.weight, mesh, Replicate())

    def forward(self, x: Tensor) -> Routes:
        """See `Router`."""
        return self.route(F.linear(x, local_shard(self.weight, Partial())))


class AllToAllDispatch(ExpertDispatch):
    """Sends every row to the rank of its expert with an all-to-all, and the outputs back."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._group, self._size = group, group.size()

    def forward(
        self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, list[int]], Tensor]
    ) -> Tensor:
        """See `ExpertDispatch`. `counts` covers all experts, `run` gets the counts of this rank."""
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self._group)
        sent = counts.view(self._size, -1).sum(dim=1).tolist()
        by_source = arriving.view(self._size, -1)
        received = by_source.sum(dim=1).tolist()
        arrived = _AllToAll.apply(rows, sent, received, self._group)
        # from (source, expert) to (expert, source)
        experts = torch.arange(by_source.size(1), device=counts.device).repeat(self._size)
        order = experts.repeat_interleave(arriving).argsort(stable=True)
        answers = run(arrived[order], by_source.sum(dim=0).tolist())[order.argsort()]
        return _AllToAll.apply(answers, received, sent, self._group)  # type: ignore[no-any-return]


class ParallelLoadBalancingLoss(LoadBalancingLoss):
    """The loss over sequences split over context ranks. Each tensor rank adds its share."""

    def __init__(self, run: RunConfig, grid: Grid) -> None:
        super().__init__()
        self._weight = run.architecture.load_balancing_weight / grid.degree("tensor")
        self.set_count(run.global_batch)
        self._group = grid.groups.get("cp")

    def set_count(self, count: int) -> None:
        """See `LoadBalancingLoss`."""
        self.scale = self._weight / count

    def whole_sequences(self, counts: Tensor, length: int) -> tuple[Tensor, int]:
        """See `LoadBalancingLoss`."""
        if self._group is None:
            return counts, length
        dist.all_reduce(counts, group=self._group)
        return counts, length * self._group.size()


def _add_sequence_collectives(moe: MixtureOfExperts, group: dist.ProcessGroup) -> None:
    """All-gather the sequence before the layer, and reduce-scatter the output after it."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (all_gather(inputs[0], group), *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        return reduce_scatter(out, group)

    moe.register_forward_pre_hook(before)
    moe.register_forward_hook(after)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back = _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group)
        return back, None, None, None


def _all_to_all(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    arrived = rows.new_empty(sum(received), rows.size(1))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived
