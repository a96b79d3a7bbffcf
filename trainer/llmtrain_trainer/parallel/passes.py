"""One optimizer step's forward and backward passes: in sequence, or through a pipeline.

Both answer the same two questions, so the training loop does not know which one it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.tensor.parallel import loss_parallel

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.llama import Llama
from llmtrain_trainer.parallel.mesh import Grid


class Passes(Protocol):
    """Forward and backward over this rank's share of a batch, shapes (local batch, length)."""

    def train(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulate gradients; return this rank's share of the mean loss (0 off the end)."""

    def evaluate(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return this rank's share of the mean loss, without gradients."""


class Loss:
    """Cross entropy, divided by the tokens of the whole step on all ranks.

    With that, gradients of micro-batches and of data ranks only have to be added up, and the result
    does not depend on the layout.
    """

    def __init__(self, run: RunConfig) -> None:
        self.scale = 1.0 / run.tokens_per_step

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the share of one micro-batch; logits (batch, length, vocab), maybe sharded."""
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return total * self.scale


class SequentialPasses:
    """Micro-batches one after the other on the whole model."""

    def __init__(self, model: Llama, run: RunConfig, grid: Grid) -> None:
        self.model, self.loss = model, Loss(run)
        self.count, self.sharded = run.micro_batches, grid.degree("tp") > 1

    def train(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """See `Passes`; gradients cross the data ranks once, with the last micro-batch."""
        total = torch.zeros((), device=tokens.device, dtype=torch.float64)
        parts = list(zip(tokens.chunk(self.count), targets.chunk(self.count), strict=True))
        for index, (x, y) in enumerate(parts):
            last = index == len(parts) - 1
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(last)
                self.model.set_is_last_backward(last)
                self.model.set_reshard_after_backward(last)
            with vocabulary_split(self.sharded):
                loss = self.loss(self.model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
            total += _plain(loss)
        return total

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """See `Passes`."""
        total = torch.zeros((), device=tokens.device, dtype=torch.float64)
        for x, y in zip(tokens.chunk(self.count), targets.chunk(self.count), strict=True):
            with vocabulary_split(self.sharded):
                total += _plain(self.loss(self.model(x), y))
        return total


class PipelinedPasses:
    """Micro-batches through the stages by one of torch's schedules."""

    def __init__(self, model: Llama, run: RunConfig, grid: Grid, device: torch.device) -> None:
        self.part, self.sharded = model.part, grid.degree("tp") > 1
        stage = PipelineStage(
            model, grid.coordinate("pp"), grid.degree("pp"), device, group=grid.group("pp")
        )
        # scale_grads: the loss is already divided by the whole step's tokens
        self.schedule = get_schedule_class(run.schedule)(
            stage, n_microbatches=run.micro_batches, loss_fn=Loss(run), scale_grads=False
        )

    def train(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """See `Passes`."""
        losses: list[Tensor] = []
        with vocabulary_split(self.sharded):
            self.schedule.step(
                *self._first(tokens),
                target=targets if self.part.predicts else None,
                losses=losses if self.part.predicts else None,
                return_outputs=False,
            )
        return self._total(losses, tokens.device)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """See `Passes`."""
        losses: list[Tensor] = []
        with vocabulary_split(self.sharded):
            self.schedule.eval(
                *self._first(tokens),
                target=targets if self.part.predicts else None,
                losses=losses if self.part.predicts else None,
            )
        return self._total(losses, tokens.device)

    def _first(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (tokens,) if self.part.embeds else ()

    def _total(self, losses: list[Tensor], device: torch.device) -> Tensor:
        total = torch.zeros((), device=device, dtype=torch.float64)
        for loss in losses:
            total += _plain(loss)
        return total


def build_passes(model: Llama, run: RunConfig, grid: Grid, device: torch.device) -> Passes:
    """Choose the passes for a layout."""
    if grid.degree("pp") > 1:
        return PipelinedPasses(model, run, grid, device)
    return SequentialPasses(model, run, grid)


@contextmanager
def vocabulary_split(active: bool) -> Iterator[None]:
    """Compute losses on logits sharded over the vocabulary, where tensor parallelism is on."""
    with loss_parallel() if active else nullcontext():
        yield


def _plain(loss: Tensor) -> Tensor:
    loss = loss.detach()
    full = getattr(loss, "full_tensor", None)
    return loss if full is None else full()
