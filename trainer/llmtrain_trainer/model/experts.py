"""A mixture of experts in place of a feed-forward block: each token uses a few of many experts.

Routing as in Mixtral (arXiv:2401.04088, section 2.1): a softmax over the logits of all experts. The
largest k are kept and normalized to a sum of one. No token is dropped, regardless of how many
tokens an expert gets. `LoadBalancingLoss` balances the experts.

There is no parallelism here. `dispatch` decides where an expert runs, and `LoadBalancingLoss`
decides over which ranks the tokens of a sequence are counted. Both are replaced from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain_core.api.job import Architecture

GroupedLinear = Callable[[Tensor, Tensor], Tensor]
"""Maps rows (rows, in), ordered by expert, and weights (experts, out, in) to (rows, out)."""
GROUPED_MM_ALIGNMENT = 8
"""The grouped matrix product reads this many values of a row at once."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Which tokens of a batch belong to which example. Padding belongs to none."""

    members: Tensor
    """True where a token of this rank belongs to an example, (batch, examples, length)."""
    lengths: Tensor
    """Tokens of the whole examples, (batch, examples). 0 where a sequence has fewer examples."""

    @classmethod
    def of(cls, numbers: Tensor, token_positions: Tensor) -> Examples:
        """Return the examples by the number of each token's example (batch, whole length)."""
        count = max(1, int(numbers.max()) + 1)
        each = torch.arange(count, device=numbers.device).unsqueeze(-1)
        whole = numbers.unsqueeze(1) == each
        return cls(whole[..., token_positions], whole.sum(dim=-1))


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts of the tokens (batch, length), k = `experts_per_token` for each token."""

    experts: Tensor
    """Expert indices, (batch, length, k)."""
    weights: Tensor
    """Weights of the experts' outputs, (batch, length, k). They sum to one per token."""
    probabilities: Tensor
    """The softmax over all experts, (batch, length, experts)."""


class Router(nn.Module):
    """Chooses the experts of every token."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.experts_per_token = shape.experts_per_token
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.hidden_size))

    def forward(self, x: Tensor) -> Routes:
        """Route (batch, length, hidden). The softmax is computed in float32 or wider."""
        return self.route(F.linear(x, self.weight))

    def route(self, logits: Tensor) -> Routes:
        """Return the routes for logits of shape (batch, length, experts)."""
        wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        probabilities = wide.softmax(dim=-1)
        largest, experts = probabilities.topk(self.experts_per_token, dim=-1)
        return Routes(experts, largest / largest.sum(dim=-1, keepdim=True), probabilities)


class Experts(nn.Module):
    """The stacked feed-forward blocks of one layer. An expert without tokens also has gradients."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        count, hidden, inner = shape.experts, shape.hidden_size, shape.ffn_size
        gated = shape.activation == "swiglu"
        self.gate = nn.Parameter(torch.empty(count, inner, hidden)) if gated else None
        self.up = nn.Parameter(torch.empty(count, inner, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Map rows (rows, hidden). The first `counts[0]` rows go to expert 0, and so on."""
        return self.run(rows, counts, self.up, self.gate, self.down)

    def run(
        self, rows: Tensor, counts: list[int], up: Tensor, gate: Tensor | None, down: Tensor
    ) -> Tensor:
        """Map rows with the given weights: whole experts, or a shard of each."""
        linear = grouped_linear(rows, counts, up)
        gates = None if gate is None else linear(rows, gate)
        return self.down_project(linear(rows, up), gates, down, linear)

    def down_project(
        self, up: Tensor, gate: Tensor | None, down: Tensor, linear: GroupedLinear
    ) -> Tensor:
        """Map the inner activations (rows, inner) to (rows, hidden)."""
        inner = F.gelu(up, approximate="tanh") if gate is None else F.silu(gate) * up
        return linear(inner, down)


def grouped_linear(rows: Tensor, counts: list[int], weights: Tensor) -> GroupedLinear:
    """Return the function that multiplies rows with the weights of their experts.

    In bfloat16, with rows of a multiple of 16 bytes, one kernel serves all experts.
    """
    if rows.dtype == torch.bfloat16 and not any(
        size % GROUPED_MM_ALIGNMENT for size in weights.shape[1:]
    ):
        ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=rows.device)
        return lambda x, w: F.grouped_mm(x, w.transpose(-2, -1), offs=ends)

    def one_by_one(x: Tensor, w: Tensor) -> Tensor:
        parts = zip(torch.split(x, counts), w.unbind(), strict=True)
        return torch.cat([F.linear(part, each) for part, each in parts])

    return one_by_one


class ExpertDispatch(nn.Module):
    """Sends rows to their experts and returns the outputs. Here, all experts are on this rank."""

    def forward(
        self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, list[int]], Tensor]
    ) -> Tensor:
        """Map rows (rows, hidden), ordered by expert. `counts` is the number of rows per expert."""
        return run(rows, counts.tolist())


class LoadBalancingLoss(nn.Module):
    """The load-balancing loss, computed per sequence, or per example of a sequence.

    experts * sum_i f_i P_i. f_i is the fraction of the choices that fell on expert i, and P_i is
    its mean probability (Fedus et al., arXiv:2101.03961, equations 4 to 6; per sequence and for
    several choices as in DeepSeek-V3, arXiv:2412.19437, equations 17 to 20). The minimum, 1, is a
    uniform load.

    The loss is per sequence because the product of two means over a batch would depend on how the
    batch is split into micro-batches and over ranks.
    """

    scale: float = 1.0
    """Weight of the loss, divided by the number of sequences or examples in the step."""

    def forward(self, routes: Routes, examples: Examples | None = None) -> Tensor:
        """Return the scaled sum over the sequences or examples, for the tokens of this rank.

        Padding is no token: it has no choices and no probabilities.
        """
        choices, probabilities = routes.experts, routes.probabilities
        batch, length, experts = probabilities.shape
        ones = torch.ones_like(choices, dtype=probabilities.dtype)
        if examples is None:
            counts = probabilities.new_zeros(batch, experts)
            counts.scatter_add_(1, choices.flatten(1), ones.flatten(1))
            sums = probabilities.sum(dim=1)
        else:
            members = examples.members.to(probabilities.dtype)
            counts = members @ torch.zeros_like(probabilities).scatter_add_(2, choices, ones)
            sums = members @ probabilities
        counts, length = self.whole_sequences(counts, length)
        lengths = length if examples is None else examples.lengths.clamp(min=1).unsqueeze(-1)
        shares = counts / (lengths * choices.size(-1))
        return self.scale * experts * (shares * (sums / lengths)).sum()

    def whole_sequences(self, counts: Tensor, length: int) -> tuple[Tensor, int]:
        """Return the choices per expert over whole sequences, and the length of a sequence."""
        return counts, length

    def set_count(self, count: int) -> None:
        """Set the number of sequences or examples in the next step, over all ranks."""
        self.scale = 1.0 / count


class MixtureOfExperts(nn.Module):
    """The router and the experts of a layer."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.router = Router(shape)
        self.experts = Experts(shape)
        self.dispatch: nn.Module = ExpertDispatch()
        self.load_balancing_loss: LoadBalancingLoss | None = (
            LoadBalancingLoss() if shape.load_balancing_weight else None
        )

    def forward(self, x: Tensor, examples: Examples | None = None) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        routes: Routes = self.router(x)
        numbers = routes.experts.flatten()
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=routes.probabilities.size(-1))
        rows = x.flatten(0, 1)[order // routes.experts.size(-1)]
        answers = self.dispatch(rows, counts, self.experts)
        # reorder and sum: a scatter would add in an order that a GPU does not fix
        back = answers[order.argsort()].view(*routes.experts.shape, -1)
        out = (back * routes.weights.to(back.dtype).unsqueeze(-1)).sum(dim=-2)
        if self.load_balancing_loss is None or not torch.is_grad_enabled():
            return out  # type: ignore[no-any-return]
        return _Attach.apply(out, self.load_balancing_loss(routes, examples))  # type: ignore[no-any-return]


class _Attach(torch.autograd.Function):
    """Adds a loss of an inner layer to the backward pass that goes through the layer.

    A pipeline stage without the final loss therefore trains its routers, too.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, loss: Tensor) -> Tensor:
        ctx.loss = (loss.shape, loss.dtype, loss.device)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.loss
        return gradients[0], torch.ones(shape, dtype=dtype, device=device)
