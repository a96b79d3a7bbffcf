"""A mixture of experts in place of a feed-forward block: every token visits a few of many.

Routing as in Mixtral (arXiv:2401.04088, section 2.1): a softmax over the logits of all experts, of
which the largest few are kept and normalised to a sum of one. No expert drops a token, however many
chose it. What keeps the experts evenly used is a loss (`Balance`).

No parallelism here: whose experts run where is the `exchange`, and over which ranks the tokens of a
sequence are counted is the `Balance`; both are replaced from the outside.
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

Product = Callable[[Tensor, Tensor], Tensor]
"""Maps rows (rows, in), ordered by expert, and weights (experts, out, in) to (rows, out)."""
ALIGNED = 8
"""Values of a row that a grouped product reads at once."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the tokens of (batch, length) go, `experts_per_token` (k) ways each."""

    experts: Tensor
    """Numbers of the experts, (batch, length, k)."""
    weights: Tensor
    """How much each one's answer counts, (batch, length, k); sums to one."""
    probabilities: Tensor
    """The softmax over all experts, (batch, length, experts)."""


class Router(nn.Module):
    """Chooses the experts of every token."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.chosen = shape.experts_per_token
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.hidden_size))

    def forward(self, x: Tensor) -> Routes:
        """Route (batch, length, hidden); the softmax is computed in float32 at least."""
        return self.choose(F.linear(x, self.weight))

    def choose(self, logits: Tensor) -> Routes:
        """Return the routes for logits of shape (batch, length, experts)."""
        wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        probabilities = wide.softmax(dim=-1)
        largest, experts = probabilities.topk(self.chosen, dim=-1)
        return Routes(experts, largest / largest.sum(dim=-1, keepdim=True), probabilities)


class Experts(nn.Module):
    """The feed-forward blocks of one layer, stacked: an expert without tokens has gradients too."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        count, hidden, inner = shape.experts, shape.hidden_size, shape.ffn_size
        gated = shape.activation == "swiglu"
        self.gate = nn.Parameter(torch.empty(count, inner, hidden)) if gated else None
        self.up = nn.Parameter(torch.empty(count, inner, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Map rows (rows, hidden), the first `counts[0]` of which are expert 0's, and so on."""
        return self.run(rows, counts, self.up, self.gate, self.down)

    def run(
        self, rows: Tensor, counts: list[int], up: Tensor, gate: Tensor | None, down: Tensor
    ) -> Tensor:
        """The same with the weights given: those of the whole experts, or of a part of each."""
        product = products(rows, counts, up)
        gates = None if gate is None else product(rows, gate)
        return self.lower(product(rows, up), gates, down, product)

    def lower(self, up: Tensor, gate: Tensor | None, down: Tensor, product: Product) -> Tensor:
        """Map inner activations (rows, inner) to (rows, hidden)."""
        inner = F.gelu(up, approximate="tanh") if gate is None else F.silu(gate) * up
        return product(inner, down)


def products(rows: Tensor, counts: list[int], weights: Tensor) -> Product:
    """Return what multiplies rows with the weights of their experts.

    One kernel for all experts where there is one: in bfloat16, with rows of whole 16 bytes.
    """
    if rows.dtype == torch.bfloat16 and not any(size % ALIGNED for size in weights.shape[1:]):
        ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=rows.device)
        return lambda x, w: F.grouped_mm(x, w.transpose(-2, -1), offs=ends)

    def one_by_one(x: Tensor, w: Tensor) -> Tensor:
        parts = zip(torch.split(x, counts), w.unbind(), strict=True)
        return torch.cat([F.linear(part, each) for part, each in parts])

    return one_by_one


class Exchange(nn.Module):
    """Brings rows to their experts and the answers back; here, all experts are at home."""

    def forward(
        self, rows: Tensor, counts: Tensor, run: Callable[[Tensor, list[int]], Tensor]
    ) -> Tensor:
        """Map rows (rows, hidden) in order of their experts; `counts`: rows by expert."""
        return run(rows, counts.tolist())


class Balance(nn.Module):
    """The load-balancing loss, for every sequence by itself.

    experts * sum_i f_i P_i, with f_i the share of the choices that fell on expert i and P_i its
    mean probability (Fedus et al., arXiv:2101.03961, equations 4 to 6; by sequence and for several
    choices as in DeepSeek-V3, arXiv:2412.19437, equations 17 to 20). Even use gives 1, the least.

    By sequence, because the product of two means over a batch would depend on how the batch is cut
    into micro-batches and over ranks.
    """

    scale: float = 1.0
    """Share of one sequence's loss in the loss of the step, times the loss's weight."""

    def forward(self, routes: Routes) -> Tensor:
        """Return the scaled sum over the sequences; this rank's tokens of it."""
        chosen, probabilities = routes.experts, routes.probabilities
        batch, length, experts = probabilities.shape
        counts = probabilities.new_zeros(batch, experts)
        ones = torch.ones_like(chosen.flatten(1), dtype=counts.dtype)
        counts.scatter_add_(1, chosen.flatten(1), ones)
        counts, length = self.whole(counts, length)
        shares = counts / (length * chosen.size(-1))
        means = probabilities.sum(dim=1) / length
        return self.scale * experts * (shares * means).sum()

    def whole(self, counts: Tensor, length: int) -> tuple[Tensor, int]:
        """Return choices by expert of the whole sequences, and their length."""
        return counts, length


class Mixture(nn.Module):
    """A layer's router and experts."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.router = Router(shape)
        self.experts = Experts(shape)
        self.exchange: nn.Module = Exchange()
        self.balance: Balance | None = Balance() if shape.load_balancing_weight else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        routes: Routes = self.router(x)
        numbers = routes.experts.flatten()
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=routes.probabilities.size(-1))
        rows = x.flatten(0, 1)[order // routes.experts.size(-1)]
        answers = self.exchange(rows, counts, self.experts)
        # put back in order and added up: scattering would add in an order that a GPU does not fix
        back = answers[order.argsort()].view(*routes.experts.shape, -1)
        out = (back * routes.weights.to(back.dtype).unsqueeze(-1)).sum(dim=-2)
        if self.balance is None or not torch.is_grad_enabled():
            return out  # type: ignore[no-any-return]
        return _Attach.apply(out, self.balance(routes))  # type: ignore[no-any-return]


class _Attach(torch.autograd.Function):
    """Lets a loss of an inner layer take part in whatever backward pass reaches the layer.

    So a pipeline stage without the final loss trains its routers as well.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, loss: Tensor) -> Tensor:
        ctx.loss = (loss.shape, loss.dtype, loss.device)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.loss
        return gradients[0], torch.ones(shape, dtype=dtype, device=device)
