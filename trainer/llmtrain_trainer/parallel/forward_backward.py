"""One optimizer step's forward and backward passes: in sequence, or through a pipeline.

Both answer the same two questions, so the training loop does not know which one it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.tensor.parallel import loss_parallel

from llmtrain_core.pipeline_schedules import ONE_STAGE, stage_numbers
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.model.decoder import Decoder
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import RankModel
from llmtrain_trainer.parallel.tied import TiedEmbedding
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX


class Passes(Protocol):
    """Forward and backward over this rank's share of a batch, shapes (local batch, length)."""

    def train(self, tokens: Tensor, targets: Tensor, counted: int) -> Tensor:
        """Accumulate gradients; return this rank's share of the mean loss (0 off the end).

        `counted`: targets of the whole step on all ranks that are in the loss.
        """

    def evaluate(self, tokens: Tensor, targets: Tensor, counted: int) -> Score:
        """Return this rank's share of the mean loss and its misses, without gradients."""


@dataclass(frozen=True, slots=True)
class Score:
    """What an evaluation gives."""

    loss: Tensor
    """This rank's share of the mean loss."""
    misses: Tensor | None
    """Counted targets, by sequence (local batch,), of which this rank saw that another token is the
    likeliest; None where nobody asks."""


class Loss:
    """Cross entropy, divided by the counted tokens of the whole step on all ranks.

    With that, gradients of micro-batches and of data ranks only have to be added up, and the result
    does not depend on the layout, nor on how many tokens count in which part of the batch.
    """

    scale = 1.0
    """One over the step's counted tokens; set before each step."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the share of one micro-batch; logits (batch, length, vocab), maybe sharded."""
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return total * self.scale


class SequentialPasses:
    """Micro-batches one after the other on the whole model."""

    def __init__(self, model: Decoder, run: RunConfig, grid: Grid) -> None:
        self.model, self.loss, self.examples = model, Loss(), run.data.chat is not None
        self.count, self.sharded = run.micro_batches, "tp" in grid.groups

    def train(self, tokens: Tensor, targets: Tensor, counted: int) -> Tensor:
        """See `Passes`; gradients cross the data ranks once, with the last micro-batch."""
        self.loss.scale = 1.0 / counted
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
    def evaluate(self, tokens: Tensor, targets: Tensor, counted: int) -> Score:
        """See `Passes`."""
        self.loss.scale = 1.0 / counted
        total = torch.zeros((), device=tokens.device, dtype=torch.float64)
        missed: list[Tensor] = []
        for x, y in zip(tokens.chunk(self.count), targets.chunk(self.count), strict=True):
            with vocabulary_split(self.sharded):
                logits = self.model(x)
                total += _plain(self.loss(logits, y))
            if self.examples:
                missed.append(misses(logits, y))
        return Score(total, torch.cat(missed) if missed else None)


class PipelinedPasses:
    """Micro-batches through the stages by one of torch's schedules."""

    def __init__(self, model: RankModel, run: RunConfig, grid: Grid, device: torch.device) -> None:
        self.chunks, self.loss, self.count = model.chunks, Loss(), run.micro_batches
        self.examples = run.data.chat is not None
        self.embeds = any(chunk.part.embeds for chunk in self.chunks)
        self.predicts = any(chunk.part.predicts for chunk in self.chunks)
        self.sharded, self.tensor = "tp" in grid.groups, grid.degree("tp")
        self.hidden = run.architecture.hidden_size
        self.dtype = getattr(torch, run.precision)
        self.group, ranks = grid.groups["pp"], grid.degree("pp")
        self.rank_of = {
            number: rank
            for rank in range(ranks)
            for number in stage_numbers(run.schedule, rank, ranks, run.chunks)
        }
        own = grid.coordinate("pp")
        self.numbers = [number for number, rank in sorted(self.rank_of.items()) if rank == own]
        self.tied = (
            TiedEmbedding(self.chunks, self.group, 0, self.rank_of[len(self.rank_of) - 1])
            if run.architecture.tied_embeddings
            else None
        )
        self._held: dict[int, Tensor] = {}
        """Outputs of a stage for the next one on the same rank."""
        self.schedule = self._build_schedule(run, device)

    def _build_schedule(self, run: RunConfig, device: torch.device) -> Any:
        stages = [
            PipelineStage(chunk, number, len(self.rank_of), device, group=self.group)
            for number, chunk in zip(self.numbers, self.chunks, strict=True)
        ]
        kind = get_schedule_class(run.schedule)
        # scale_grads: the loss is already divided by the whole step's tokens
        options: dict[str, Any] = {"n_microbatches": self.count, "loss_fn": self.loss}
        if "max_active_stages" in inspect.signature(kind).parameters:  # torch 2.15
            options["max_active_stages"] = max(2, run.chunks)
        return kind(
            stages[0] if run.schedule in ONE_STAGE else stages,
            scale_grads=False,
            **options,
        )

    def train(self, tokens: Tensor, targets: Tensor, counted: int) -> Tensor:
        """See `Passes`."""
        self.loss.scale = 1.0 / counted
        losses: list[Tensor] = []
        if self.tied is not None:
            self.tied.take_values()
        with vocabulary_split(self.sharded):
            self.schedule.step(
                *self._first(tokens),
                target=targets if self.predicts else None,
                losses=losses if self.predicts else None,
                return_outputs=False,
            )
        if self.tied is not None:
            self.tied.add_gradients()
        return self._total(losses, tokens.device)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor, counted: int) -> Score:
        """See `Passes`.

        Stage after stage: torch's V schedules cannot run without a backward pass.
        """
        self.loss.scale = 1.0 / counted
        losses: list[Tensor] = []
        missed: list[Tensor] = []
        if self.tied is not None:
            self.tied.take_values()
        for x, y in zip(tokens.chunk(self.count), targets.chunk(self.count), strict=True):
            for number, chunk in zip(self.numbers, self.chunks, strict=True):
                out = chunk(x if chunk.part.embeds else self._receive(number, x))
                if chunk.part.predicts:
                    with vocabulary_split(self.sharded):
                        losses.append(self.loss(out, y))
                    if self.examples:
                        missed.append(misses(out, y))
                else:
                    self._send(number, out)
        for module in (module for chunk in self.chunks for module in chunk.modules()):
            if isinstance(module, FSDPModule):
                module.reshard()
        found = None
        if self.examples:  # other stages have seen no miss
            found = torch.cat(missed) if missed else tokens.new_zeros(tokens.size(0))
        return Score(self._total(losses, tokens.device), found)

    def _receive(self, number: int, tokens: Tensor) -> Tensor:
        """Return the output of the stage before `number`: (micro-batch, part of length, hidden)."""
        if number - 1 in self._held:
            return self._held.pop(number - 1)
        length = tokens.size(1) // self.tensor
        hidden = tokens.new_empty(tokens.size(0), length, self.hidden, dtype=self.dtype)
        dist.recv(hidden, group=self.group, group_src=self.rank_of[number - 1])
        return hidden

    def _send(self, number: int, hidden: Tensor) -> None:
        if number + 1 in self.numbers:
            self._held[number] = hidden
        else:
            dist.send(hidden.contiguous(), group=self.group, group_dst=self.rank_of[number + 1])

    def _first(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (tokens,) if self.embeds else ()

    def _total(self, losses: list[Tensor], device: torch.device) -> Tensor:
        total = torch.zeros((), device=device, dtype=torch.float64)
        for loss in losses:
            total += _plain(loss)
        return total


def build_passes(model: RankModel, run: RunConfig, grid: Grid, device: torch.device) -> Passes:
    """Choose the passes for a layout."""
    if "pp" in grid.groups:
        return PipelinedPasses(model, run, grid, device)
    return SequentialPasses(model.chunks[0], run, grid)


@contextmanager
def vocabulary_split(active: bool) -> Iterator[None]:
    """Compute losses on logits sharded over the vocabulary, where tensor parallelism is on."""
    with loss_parallel() if active else nullcontext():
        yield


def misses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many counted targets (batch, length) are not the likeliest token, by sequence.

    A sequence without a miss is what greedy decoding writes: it takes the likeliest token after
    what it has written, which is the reference as long as it has not left it.
    """
    likeliest = _plain(logits).argmax(-1)
    return ((likeliest != targets) & (targets != IGNORE_INDEX)).sum(-1)


def _plain(loss: Tensor) -> Tensor:
    loss = loss.detach()
    full = getattr(loss, "full_tensor", None)
    return loss if full is None else full()
