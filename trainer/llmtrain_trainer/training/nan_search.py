"""Find the first non-finite tensor after a step's loss or gradient norm is NaN or infinite.

The check in every step is free: a NaN anywhere reaches the loss or the gradient norm, which are
sums over all ranks. Both are known before the weights change. So the step can be repeated with
hooks that check the output of every module and the gradient of that output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime import json_collectives

Kind = Literal["weight", "output", "gradient"]


@dataclass(frozen=True, slots=True)
class NonFiniteTensor:
    """The first tensor of a rank that contains NaN or infinity."""

    kind: Kind
    order: int
    """Position in the order of computation of this rank."""
    rank: int
    name: str
    count: int
    """Number of elements of the rank's shard that are NaN or infinite."""
    size: int
    """Number of elements of the rank's shard."""

    def __str__(self) -> str:
        place = "" if self.kind == "weight" else " of"
        return (
            f"rank {self.rank}, {self.kind}{place} {self.name}"
            f" ({self.count} of {self.size} numbers)"
        )


def raise_with_origin(
    problem: str, model: nn.Module, repeat: Callable[[], object], grid: Grid
) -> NoReturn:
    """Raise TrainerError with the first non-finite tensor; collective over the grid.

    Weights are checked first, because the forward pass spreads their errors. `repeat` runs the
    forward and backward pass of the step again.
    """
    found = _earliest(_bad_weight(model), grid) or _earliest(_bad_activation(model, repeat), grid)
    origin = f"first in {found}" if found else "finite when repeated, so a transient fault"
    raise TrainerError(
        "LossNotFinite",
        f"{problem}; {origin}",
        field="spec.training.optimizer.learningRate",
        remedy="lower it or lengthen schedule.warmupSteps; the newest checkpoint is from before "
        "this step",
    )


def require_weights(when: str, model: nn.Module, grid: Grid) -> None:
    """Raise TrainerError if a weight is not finite, so that it is never saved.

    Collective over the grid.
    """
    found = _earliest(None if _all_finite(model) else _bad_weight(model), grid)
    if found is not None:
        raise TrainerError(
            "WeightsNotFinite",
            f"{when}, not saved: first in {found}",
            field="spec.training.optimizer.learningRate",
            remedy="lower it; the newest checkpoint is from before this step",
        )


def _bad_weight(model: nn.Module) -> NonFiniteTensor | None:
    for order, (name, parameter) in enumerate(model.named_parameters()):
        found = _check("weight", order, name, parameter)
        if found is not None:
            return found
    return None


def _all_finite(model: nn.Module) -> bool:
    """Return True if all weights of this rank are finite, in one pass over them."""
    shards = [_local(parameter.detach()) for parameter in model.parameters()]
    norms = torch._foreach_norm([shard for shard in shards if shard.numel()], float("inf"))
    return not norms or bool(torch.isfinite(torch.stack([n.double() for n in norms])).all())


def _earliest(finding: NonFiniteTensor | None, grid: Grid) -> NonFiniteTensor | None:
    """Return the earliest non-finite tensor of all ranks that make updates together.

    A rank that received a non-finite value from another rank has it later in its own order.
    """
    for name in ("tp", "fsdp", "dp_replicate", "pp"):
        if name in grid.groups:
            own = None if finding is None else asdict(finding)
            found = json_collectives.all_gather(own, grid.groups[name])
            tensors = [NonFiniteTensor(**each) for each in found if each is not None]
            finding = min(tensors, key=_order, default=None)
    return finding


def _order(finding: NonFiniteTensor) -> tuple[bool, int, int]:
    return finding.kind == "gradient", finding.order, finding.rank


def _bad_activation(model: nn.Module, repeat: Callable[[], object]) -> NonFiniteTensor | None:
    check = _OutputCheck()
    with check.active(model), torch.compiler.set_stance("force_eager"):
        repeat()
    return check.found


class _OutputCheck:
    """Checks the output of every module and its gradient, in the order of computation."""

    def __init__(self) -> None:
        self.found: NonFiniteTensor | None = None
        self._checked = 0

    @contextlib.contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Hook into all modules of a model."""
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
        def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self._check("output", name, tensor.detach())
                    if tensor.requires_grad:
                        _on_gradient(tensor, lambda grad: self._check("gradient", name, grad))

        return check_output

    def _check(self, kind: Kind, name: str, tensor: Tensor) -> None:
        self._checked += 1
        if self.found is None:
            self.found = _check(kind, self._checked, name, tensor)


def _on_gradient(tensor: Tensor, take: Callable[[Tensor], None]) -> None:
    tensor.register_hook(take)  # type: ignore[no-untyped-call]


def _check(kind: Kind, order: int, name: str, tensor: Tensor) -> NonFiniteTensor | None:
    local = _local(tensor.detach())
    bad = int(local.numel() - torch.isfinite(local).sum())
    return NonFiniteTensor(kind, order, dist.get_rank(), name, bad, local.numel()) if bad else None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
