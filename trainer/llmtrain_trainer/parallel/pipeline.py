"""The forward and backward passes of one optimizer step through the stages of a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining.schedules import get_schedule_class

from llmtrain_core.pipeline_schedules import ONE_STAGE, stage_numbers
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.parallel.forward_backward import (
    WHOLE,
    Division,
    EvaluationResult,
    NextTokenLoss,
    count_examples,
    full_value,
    sharded_loss,
    split,
)
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.model_parts import ModelParts
from llmtrain_trainer.parallel.tied import TiedEmbedding
from llmtrain_trainer.parallel.workarounds import JsonPipelineStage


class PipelineForwardBackward:
    """Run the micro-batches through the stages by one of torch's schedules."""

    def __init__(
        self,
        model: ModelParts,
        run: RunConfig,
        grid: Grid,
        device: torch.device,
        complete_gradients: Callable[[], None],
    ) -> None:
        self.complete_gradients = complete_gradients
        self.chunks, self.loss, self.count = model.chunks, NextTokenLoss(), run.micro_batches
        self.size = run.micro_batch
        self.examples = run.data.chat is not None
        self.has_embedding = any(chunk.stage.has_embedding for chunk in self.chunks)
        self.has_output = any(chunk.stage.has_output for chunk in self.chunks)
        self.sharded, self.tensor = "tp" in grid.groups, grid.degree("tensor")
        self.hidden = run.architecture.hidden_size
        self.dtype = getattr(torch, run.precision)
        self.group, ranks = grid.groups["pp"], grid.degree("pipeline")
        self.rank_of = {
            number: rank
            for rank in range(ranks)
            for number in stage_numbers(run.schedule, rank, ranks, run.chunks)
        }
        own = grid.coordinate("pipeline")
        self.numbers = [number for number, rank in sorted(self.rank_of.items()) if rank == own]
        self.tied = (
            TiedEmbedding(self.chunks, self.group, 0, self.rank_of[len(self.rank_of) - 1])
            if run.architecture.tied_embeddings
            else None
        )
        self._local_outputs: dict[int, Tensor] = {}
        """Outputs of a stage whose next stage is on the same rank."""
        self.schedule = self._build_schedule(run, device)

    def _build_schedule(self, run: RunConfig, device: torch.device) -> Any:
        stages = [
            JsonPipelineStage(chunk, number, len(self.rank_of), device, group=self.group)
            for number, chunk in zip(self.numbers, self.chunks, strict=True)
        ]
        kind = get_schedule_class(run.schedule)
        # scale_grads: the loss is already divided by the tokens of the whole step
        options: dict[str, Any] = {"n_microbatches": self.count, "loss_fn": self.loss}
        if "max_active_stages" in inspect.signature(kind).parameters:  # torch 2.15
            options["max_active_stages"] = max(2, run.chunks)
        return kind(
            stages[0] if run.schedule in ONE_STAGE else stages,
            scale_grads=False,
            **options,
        )

    def train(
        self, tokens: Tensor, targets: Tensor, loss_tokens: int, division: Division = WHOLE
    ) -> Tensor:
        """See `ForwardBackward`. Every stage gets the division of its micro-batch."""
        self.loss.scale = 1.0 / loss_tokens
        count_examples(self.chunks, division)
        losses: list[Tensor] = []
        if self.tied is not None:
            self.tied.update_copy()
        with sharded_loss(self.sharded):
            self.schedule.step(
                *((tokens,) if self.has_embedding else ()),
                target=targets if self.has_output else None,
                losses=losses if self.has_output else None,
                return_outputs=False,
                **division.arguments(),
            )
        self.complete_gradients()
        if self.tied is not None:
            self.tied.reduce_gradients()
        return _total(losses, tokens.device)

    @torch.no_grad()
    def evaluate(
        self, tokens: Tensor, targets: Tensor, division: Division = WHOLE
    ) -> EvaluationResult:
        """See `ForwardBackward`.

        The stages run one after the other: torch's V schedules need a backward pass.
        """
        parts: list[EvaluationResult] = []
        if self.tied is not None:
            self.tied.update_copy()
        count = tokens.size(0) // self.size
        for x, y, divided in split(tokens, targets, division, count):
            for number, chunk in zip(self.numbers, self.chunks, strict=True):
                given = x if chunk.stage.has_embedding else self._receive(number, x)
                out = chunk(given, **divided)
                if chunk.stage.has_output:
                    with sharded_loss(self.sharded):
                        parts.append(self.loss.evaluate(out, y, self.examples))
                else:
                    self._send(number, out)
        for module in (module for chunk in self.chunks for module in chunk.modules()):
            if isinstance(module, FSDPModule):
                module.reshard()
        return EvaluationResult.join(parts, tokens)

    def _receive(self, number: int, tokens: Tensor) -> Tensor:
        """Return the output of stage `number - 1`: (micro-batch, length / tensor, hidden)."""
        if number - 1 in self._local_outputs:
            return self._local_outputs.pop(number - 1)
        length = tokens.size(1) // self.tensor
        hidden = tokens.new_empty(tokens.size(0), length, self.hidden, dtype=self.dtype)
        dist.recv(hidden, group=self.group, group_src=self.rank_of[number - 1])
        return hidden

    def _send(self, number: int, hidden: Tensor) -> None:
        if number + 1 in self.numbers:
            self._local_outputs[number] = hidden
        else:
            dist.send(hidden.contiguous(), group=self.group, group_dst=self.rank_of[number + 1])


def _total(losses: list[Tensor], device: torch.device) -> Tensor:
    total = torch.zeros((), device=device, dtype=torch.float64)
    for loss in losses:
        total += full_value(loss)
    return total
