"""Expert parallelism: neighbouring data ranks share out the experts of every layer.

A token's hidden state travels to the ranks of its experts and the answers travel back, two
all-to-alls each way (Lepikhin et al., arXiv:2006.16668); nothing is padded and no token is dropped.
Tensor ranks hold a part of every expert's inner width. The rest of the data ranks shard what an
expert rank holds by FSDP, along the hidden size: the other two axes are taken.
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
from llmtrain_trainer.model.experts import Balance, Exchange, Experts, Mixture, Router, Routes
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.sequence import gather, scatter_sum
from llmtrain_trainer.parallel.shards import local, split


def mixtures(model: Decoder) -> list[Mixture]:
    """Return the mixtures of experts of a slice, in order."""
    return [block.ffn for block in model.blocks() if isinstance(block.ffn, Mixture)]


def split_experts(model: Decoder, run: RunConfig, grid: Grid) -> None:
    """Deal the experts of a slice out over expert and tensor ranks, in place."""
    for mixture in mixtures(model):
        if grid.expert_mesh is not None:
            mixture.experts = SplitExperts(mixture.experts, grid.expert_mesh["ep", "tp"])
            mixture.exchange = ExpertExchange(grid.groups["ep"])
        elif "tp" in grid.groups:
            mixture.experts = SplitExperts(mixture.experts, grid.mesh["tp"])
        if "tp" in grid.groups:
            mixture.router = SplitRouter(mixture.router, grid.mesh["tp"])
            _gather_and_sum(mixture, grid.groups["tp"])
        if mixture.balance is not None:
            mixture.balance = GridBalance(run, grid)


def hidden_axis(experts: Experts) -> Callable[[nn.Parameter], Shard]:
    """Return along which axis FSDP shards a parameter of the experts: the hidden size."""
    return lambda parameter: Shard(1 if parameter is experts.down else 2)


class SplitExperts(Experts):
    """This rank's experts, and its part of their inner width."""

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        inner_first = {"ep": Shard(0), "tp": Shard(1)}
        inner_last = {"ep": Shard(0), "tp": Shard(2)}
        names = mesh.mesh_dim_names or ()
        first, last = ([axes[name] for name in names] for axes in (inner_first, inner_last))
        self.gate = None if whole.gate is None else split(whole.gate, mesh, *first)
        self.up = split(whole.up, mesh, *first)
        self.down = split(whole.down, mesh, *last)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """See `Experts`; with tensor ranks, a part of the answers' sum."""
        gate = None if self.gate is None else local(self.gate)
        return self.run(rows, counts, local(self.up), gate, local(self.down))


class SplitRouter(Router):
    """The whole router, on all tokens of a tensor group; its gradient is a part.

    Each tensor rank sees its part of the answers, and so how much a part of them counts.
    """

    def __init__(self, whole: Router, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.chosen = whole.chosen
        self.weight = split(whole.weight, mesh, Replicate())

    def forward(self, x: Tensor) -> Routes:
        """See `Router`."""
        return self.choose(F.linear(x, local(self.weight, Partial())))


class ExpertExchange(Exchange):
    """Sends every row to the rank of its expert, and the answers back."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._group, self._size = group, group.size()

    def forward(
        self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, list[int]], Tensor]
    ) -> Tensor:
        """See `Exchange`; `counts` are of all experts, `run` is given this rank's."""
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


class GridBalance(Balance):
    """The loss of sequences that context ranks share; tensor ranks each count for a part."""

    def __init__(self, run: RunConfig, grid: Grid) -> None:
        super().__init__()
        self.scale = run.architecture.load_balancing_weight / run.global_batch / grid.degree("tp")
        self._group = grid.groups.get("cp")

    def whole(self, counts: Tensor, length: int) -> tuple[Tensor, int]:
        """See `Balance`."""
        if self._group is None:
            return counts, length
        dist.all_reduce(counts, group=self._group)
        return counts, length * self._group.size()


def _gather_and_sum(mixture: Mixture, group: dist.ProcessGroup) -> None:
    """Gather the sequence before the mixture, and sum the parts of the answers into parts of it."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather(inputs[0], group),)

    def after(_: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        return scatter_sum(out, group)

    mixture.register_forward_pre_hook(before)
    mixture.register_forward_hook(after)


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
