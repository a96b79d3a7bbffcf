"""The forward and backward passes of one optimizer step: the interface, and one without a pipeline.

`llmtrain_trainer.parallel.pipeline` implements the interface for pipeline stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.parallel import loss_parallel

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX


class ForwardBackward(Protocol):
    """Forward and backward passes over this rank's part of a batch, shape (local batch, length)."""

    def train(
        self, tokens: Tensor, targets: Tensor, loss_tokens: int, lengths: Tensor | None = None
    ) -> Tensor:
        """Accumulate gradients. Return this rank's share of the mean loss.

        The share is 0 on ranks without the last stage. `loss_tokens` is the number of targets in
        the loss of the whole step, on all ranks. `lengths` (local batch,) are the real tokens of
        each whole sequence, for models with experts whose sequences are padded.
        """

    def evaluate(self, tokens: Tensor, targets: Tensor) -> EvaluationResult:
        """Return the losses and mismatches of this rank's part of sequences, without gradients.

        The number of sequences may differ from that of a step. It is a multiple of the micro-batch
        size.
        """


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result of an evaluation on one rank, zeros on a rank without the last stage."""

    losses: Tensor
    """Sum of the losses of the targets of each sequence on this rank, (sequences,), float64."""
    mismatches: Tensor
    """Targets in the loss that are not the most likely token, by sequence, (sequences,). Zeros
    unless the data are conversations."""

    @classmethod
    def join(cls, parts: Sequence[EvaluationResult], tokens: Tensor) -> EvaluationResult:
        """Return the result of all micro-batches of `tokens`. A rank may have none."""
        if parts:
            return cls(
                torch.cat([part.losses for part in parts]),
                torch.cat([part.mismatches for part in parts]),
            )
        count = tokens.size(0)
        return cls(tokens.new_zeros(count, dtype=torch.float64), tokens.new_zeros(count))


class NextTokenLoss:
    """Cross entropy, divided by the number of targets in the loss of the whole step.

    Gradients of micro-batches and data ranks then only have to be summed. The result does not
    depend on the layout, nor on how the targets in the loss are distributed over the batch.
    """

    scale = 1.0
    """1 / targets in the loss of the step. Set before each step."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the share of a micro-batch. Logits (batch, length, vocab) may be sharded."""
        return _cross_entropy(logits, targets, "sum") * self.scale

    def evaluate(self, logits: Tensor, targets: Tensor, examples: bool) -> EvaluationResult:
        """Return the losses of a micro-batch by sequence and, for `examples`, the mismatches."""
        each = full_value(_cross_entropy(logits, targets, "none")).view(targets.shape)
        none = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
        mismatches = count_mismatches(logits, targets) if examples else none
        return EvaluationResult(each.sum(-1, dtype=torch.float64), mismatches)


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class SequentialForwardBackward:
    """Run the micro-batches one after the other through the whole model."""

    def __init__(self, model: Decoder, run: RunConfig, grid: Grid) -> None:
        self.model, self.loss, self.examples = model, NextTokenLoss(), run.data.chat is not None
        self.count, self.size = run.micro_batches, run.micro_batch
        self.sharded = "tp" in grid.groups

    def train(
        self, tokens: Tensor, targets: Tensor, loss_tokens: int, lengths: Tensor | None = None
    ) -> Tensor:
        """See `ForwardBackward`. Gradients are reduced once, with the last micro-batch."""
        self.loss.scale = 1.0 / loss_tokens
        total = torch.zeros((), device=tokens.device, dtype=torch.float64)
        split: list[tuple[Tensor, ...]] = [()] * self.count
        if lengths is not None:
            split = [(each,) for each in lengths.chunk(self.count)]
        parts = list(
            zip(
                tokens.chunk(self.count),
                targets.chunk(self.count),
                split,
                strict=True,
            )
        )
        for index, (x, y, real) in enumerate(parts):
            last = index == len(parts) - 1
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(last)
                self.model.set_is_last_backward(last)
                self.model.set_reshard_after_backward(last)
            with sharded_loss(self.sharded):
                loss = self.loss(self.model(x, *real), y)
                loss.backward()  # type: ignore[no-untyped-call]
            total += full_value(loss)
        return total

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> EvaluationResult:
        """See `ForwardBackward`."""
        parts = []
        count = tokens.size(0) // self.size
        for x, y in zip(tokens.chunk(count), targets.chunk(count), strict=True):
            with sharded_loss(self.sharded):
                parts.append(self.loss.evaluate(self.model(x), y, self.examples))
        return EvaluationResult.join(parts, tokens)


@contextmanager
def sharded_loss(active: bool) -> Iterator[None]:
    """Compute losses on logits that are sharded over the vocabulary, if `active`."""
    with loss_parallel() if active else nullcontext():
        yield


def count_mismatches(logits: Tensor, targets: Tensor) -> Tensor:
    """Return per sequence how many targets in the loss (batch, length) are not the likeliest token.

    Greedy decoding reproduces a sequence without a mismatch: it takes the likeliest token after
    the tokens so far, and these equal the reference.
    """
    likeliest = full_value(logits).argmax(-1)
    return ((likeliest != targets) & (targets != IGNORE_INDEX)).sum(-1)


def full_value(tensor: Tensor) -> Tensor:
    """Return the whole tensor, detached, if it is a DTensor."""
    tensor = tensor.detach()
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
