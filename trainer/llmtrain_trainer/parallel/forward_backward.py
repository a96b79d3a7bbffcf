"""The forward and backward passes of one optimizer step: the interface, and one without a pipeline.

`llmtrain_trainer.parallel.pipeline` implements the interface for pipeline stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from llmtrain_trainer.parallel.experts import moe_layers
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Division:
    """How sequences are divided, (local batch, length). Context ranks have whole sequences."""

    documents: Tensor | None = None
    """Number of each token's document in its sequence, inside which attention and positions stay;
    -1 for padding. None: a sequence is one document."""
    examples: Tensor | None = None
    """Number of each token's example, -1 for padding, for the load-balancing loss of experts. None:
    it is computed per sequence."""
    example_count: int | None = None
    """Examples of the whole step, on all ranks, with `examples`."""

    def arguments(self) -> dict[str, Tensor]:
        """Return the arguments of `Decoder.forward`."""
        named = {"documents": self.documents, "examples": self.examples}
        return {name: numbers for name, numbers in named.items() if numbers is not None}


WHOLE = Division()
"""Sequences that are not divided."""


class ForwardBackward(Protocol):
    """Forward and backward passes over this rank's part of a batch, shape (local batch, length)."""

    def train(
        self, tokens: Tensor, targets: Tensor, loss_tokens: int, division: Division = WHOLE
    ) -> Tensor:
        """Accumulate gradients. Return this rank's share of the mean loss.

        The share is 0 on ranks without the last stage. `loss_tokens` is the number of targets in
        the loss of the whole step, on all ranks.
        """

    def evaluate(
        self, tokens: Tensor, targets: Tensor, division: Division = WHOLE
    ) -> EvaluationResult:
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

    def __init__(
        self, model: Decoder, run: RunConfig, grid: Grid, complete_gradients: Callable[[], None]
    ) -> None:
        self.complete_gradients = complete_gradients
        self.model, self.loss, self.examples = model, NextTokenLoss(), run.data.chat is not None
        self.count, self.size = run.micro_batches, run.micro_batch
        self.sharded = "tp" in grid.groups

    def train(
        self, tokens: Tensor, targets: Tensor, loss_tokens: int, division: Division = WHOLE
    ) -> Tensor:
        """See `ForwardBackward`. Gradients are reduced once, with the last micro-batch."""
        self.loss.scale = 1.0 / loss_tokens
        count_examples((self.model,), division)
        total = torch.zeros((), device=tokens.device, dtype=torch.float64)
        for index, (x, y, divided) in enumerate(split(tokens, targets, division, self.count)):
            last = index == self.count - 1
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(last)
                self.model.set_is_last_backward(last)
                self.model.set_reshard_after_backward(last)
            with sharded_loss(self.sharded):
                loss = self.loss(self.model(x, **divided), y)
                loss.backward()  # type: ignore[no-untyped-call]
            total += full_value(loss)
        self.complete_gradients()
        return total

    @torch.no_grad()
    def evaluate(
        self, tokens: Tensor, targets: Tensor, division: Division = WHOLE
    ) -> EvaluationResult:
        """See `ForwardBackward`."""
        parts = []
        count = tokens.size(0) // self.size
        for x, y, divided in split(tokens, targets, division, count):
            with sharded_loss(self.sharded):
                parts.append(self.loss.evaluate(self.model(x, **divided), y, self.examples))
        return EvaluationResult.join(parts, tokens)


def split(
    tokens: Tensor, targets: Tensor, division: Division, count: int
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Yield tokens, targets and the arguments of `Decoder.forward` of `count` micro-batches."""
    chunks = {name: numbers.chunk(count) for name, numbers in division.arguments().items()}
    for index, (x, y) in enumerate(zip(tokens.chunk(count), targets.chunk(count), strict=True)):
        yield x, y, {name: each[index] for name, each in chunks.items()}


def count_examples(chunks: Iterable[Decoder], division: Division) -> None:
    """Tell the load-balancing losses how many examples the step has."""
    if division.example_count is None:
        return
    for chunk in chunks:
        for moe in moe_layers(chunk):
            if moe.load_balancing_loss is not None:
                moe.load_balancing_loss.set_count(division.example_count)


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
