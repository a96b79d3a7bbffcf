"""Evaluation on held-out data: every target of it, or of a fixed part, counts once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.held_out import DataShare, HeldOutSequences
from llmtrain_trainer.parallel.forward_backward import Division, ForwardBackward
from llmtrain_trainer.parallel.grad_norm import sum_over_ranks, sum_over_sequence
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.runtime.reports import HeldOutScore


class Evaluator:
    """Evaluates the model of one rank. All ranks evaluate at the same time."""

    def __init__(
        self,
        held_out: HeldOutSequences,
        forward_backward: ForwardBackward,
        run: RunConfig,
        grid: Grid,
        token_positions: Tensor,
        divide: Callable[[Tensor], Division],
        device: torch.device,
    ) -> None:
        """`divide` returns the division of whole sequences, (batch, length)."""
        self.held_out = held_out
        self._forward_backward, self._run, self._grid = forward_backward, run, grid
        self._token_positions, self._divide, self._device = token_positions, divide, device
        self._share = DataShare(grid.replica, run.replicas, run.local_batch, run.micro_batch)

    def evaluate(
        self,
        stopping: Callable[[], bool] = lambda: False,
        heartbeat: Heartbeat = no_heartbeat,
    ) -> HeldOutScore | None:
        """Return the loss and, for examples, the share of exact matches; collective.

        Return None on all ranks if `stopping` is true on any of them before the end.
        """
        held_out, device = self.held_out, self._device
        # the last entry is for the empty sequences that fill the last batch
        losses = torch.zeros(len(held_out.counts) + 1, dtype=torch.float64, device=device)
        matches = torch.zeros_like(losses)
        for batch in held_out.batches(self._share):
            if self._any(stopping()):
                return None
            tokens, targets = (
                part[:, self._token_positions].to(device) for part in (batch.tokens, batch.targets)
            )
            result = self._forward_backward.evaluate(tokens, targets, self._divide(batch.tokens))
            sources = batch.sources.to(device)
            losses.index_add_(0, sources, result.losses)
            exact = sum_over_sequence(result.mismatches, self._grid) == 0
            if self._counts_matches:
                matches.index_add_(0, sources, exact.to(matches.dtype))
            if device.type == "cuda":
                torch.cuda.synchronize()  # a heartbeat means that the batch is done
            heartbeat()
        both = sum_over_ranks(torch.cat((losses[:-1], matches[:-1])), self._grid).tolist()
        return self._score(both[: len(held_out.counts)], both[len(held_out.counts) :])

    @property
    def _counts_matches(self) -> bool:
        """True on one of the ranks that share sequences."""
        return all(self._grid.coordinate(each) == 0 for each in ("context", "pipeline"))

    def _score(self, losses: list[float], matches: list[float]) -> HeldOutScore:
        """Return the score of the sums by source."""
        held_out = self.held_out
        counted = zip(held_out.sources, losses, held_out.loss_tokens, strict=True)
        return HeldOutScore(
            sum(losses) / sum(held_out.loss_tokens),
            sum(matches) / sum(held_out.counts) if self._run.data.chat is not None else None,
            {name: loss / count for name, loss, count in counted if count},
        )

    def _any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank."""
        value = torch.tensor([int(flag)], device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)
