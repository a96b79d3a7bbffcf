"""Where the first number came from that is none: searched once a step's loss or norm shows one.

The check of every step costs nothing: a NaN anywhere reaches the loss or the gradient norm, which
are sums over all ranks. Both are known before the weights change, so the step can be repeated, this
time with a look at the output of every module and at the gradient that comes back to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.parallel.mesh import Grid

Kind = Literal["weight", "output", "gradient"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The first tensor of a rank that has a number that is none."""

    kind: Kind
    order: int
    """Among what the rank computed in this step."""
    rank: int
    name: str
    count: int
    """Elements of the rank's part that are no number, or infinite."""
    size: int
    """Elements of its part."""

    def __str__(self) -> str:
        place = "" if self.kind == "weight" else " of"
        return (
            f"rank {self.rank}, {self.kind}{place} {self.name}"
            f" ({self.count} of {self.size} numbers)"
        )


def explain(problem: str, model: nn.Module, repeat: Callable[[], object], grid: Grid) -> NoReturn:
    """Raise TrainerError with the first tensor that is not finite; collective over the grid.

    Weights come first: what is wrong with them is only spread by the pass. `repeat` takes the
    forward and backward pass of the step once more.
    """
    found = _first(_bad_weight(model), grid) or _first(_bad_value(model, repeat), grid)
    origin = f"first in {found}" if found else "not so when repeated, so a passing fault"
    raise TrainerError(
        "LossNotFinite",
        f"{problem}; {origin}",
        field="spec.training.optimizer.learningRate",
        remedy="lower it or lengthen schedule.warmupSteps; the newest checkpoint is from before "
        "this step",
    )


def require_weights(when: str, model: nn.Module, grid: Grid) -> None:
    """Raise TrainerError for weights that the next step would stumble over: they are never saved.

    Collective over the grid.
    """
    found = _first(None if _all_finite(model) else _bad_weight(model), grid)
    if found is not None:
        raise TrainerError(
            "WeightsNotFinite",
            f"{when}, not saved: first in {found}",
            field="spec.training.optimizer.learningRate",
            remedy="lower it; the newest checkpoint is from before this step",
        )


def _bad_weight(model: nn.Module) -> Finding | None:
    for order, (name, parameter) in enumerate(model.named_parameters()):
        finding = _look("weight", order, name, parameter)
        if finding is not None:
            return finding
    return None


def _all_finite(model: nn.Module) -> bool:
    """Tell whether all weights of this rank are finite, in one pass over them."""
    shards = [_local(parameter.detach()) for parameter in model.parameters()]
    norms = torch._foreach_norm([shard for shard in shards if shard.numel()], float("inf"))
    return not norms or bool(torch.isfinite(torch.stack([n.double() for n in norms])).all())


def _first(finding: Finding | None, grid: Grid) -> Finding | None:
    """Return the earliest finding of all ranks that make updates together.

    Ranks that got a bad number from another one have it later in their own order.
    """
    for name in ("tp", "dp", "rep", "pp"):
        if name in grid.groups:
            group = grid.groups[name]
            found: list[Finding | None] = [None] * group.size()
            dist.all_gather_object(found, finding, group=group)
            there = [one for one in found if one is not None]
            finding = min(there, key=_order, default=None)
    return finding


def _order(finding: Finding) -> tuple[bool, int, int]:
    return finding.kind == "gradient", finding.order, finding.rank


def _bad_value(model: nn.Module, repeat: Callable[[], object]) -> Finding | None:
    search = _Search()
    with search.watching(model), torch.compiler.set_stance("force_eager"):
        repeat()
    return search.found


class _Search:
    """Looks at every module's output and at its gradient, in the order of the computation."""

    def __init__(self) -> None:
        self.found: Finding | None = None
        self._looked = 0

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the modules of a model."""
        handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules()
            if name
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self._take("output", name, tensor.detach())
                    if tensor.requires_grad:
                        _on_gradient(tensor, lambda grad: self._take("gradient", name, grad))

        return look

    def _take(self, kind: Kind, name: str, tensor: Tensor) -> None:
        self._looked += 1
        if self.found is None:
            self.found = _look(kind, self._looked, name, tensor)


def _on_gradient(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    tensor.register_hook(take)  # type: ignore[no-untyped-call]


def _look(kind: Kind, order: int, name: str, tensor: Tensor) -> Finding | None:
    local = _local(tensor.detach())
    bad = int(local.numel() - torch.isfinite(local).sum())
    return Finding(kind, order, dist.get_rank(), name, bad, local.numel()) if bad else None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
