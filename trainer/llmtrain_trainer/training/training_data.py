"""The batches of a run, how their sequences are divided, and what a step processes."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.batches import BatchShard, TrainingBatches
from llmtrain_trainer.data.mixture import open_mixture
from llmtrain_trainer.data.packing import example_numbers
from llmtrain_trainer.data.prepared import TRAIN, PreparedData, end_of_documents
from llmtrain_trainer.model.documents import attention_span, document_numbers
from llmtrain_trainer.parallel.forward_backward import WHOLE, Division

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessedTokens:
    """The work of a step that its rate and its MFU count."""

    real: int
    """Input tokens over all ranks. Padding is not counted."""
    attention_span: float | None = None
    """Mean over the tokens of the length of their document; None for the sequence length."""

    @classmethod
    def inside_documents(cls, tokens: int, pairs: int) -> ProcessedTokens:
        """Return the work of tokens that attend in so many pairs."""
        return cls(tokens, pairs / tokens if tokens else None)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's part of a global batch, with whole sequences on the CPU."""

    sequences: tuple[Tensor, Tensor]
    """Tokens and targets, each (local batch, length)."""
    loss_tokens: int
    """Targets in the loss of the global batch."""
    division: Division
    processed: ProcessedTokens
    """The work of the global batch. The attention span of running text is that of this rank."""


class TrainingData:
    """Training sequences of one rank."""

    def __init__(
        self, run: RunConfig, data: PreparedData, device: torch.device, share: BatchShard
    ) -> None:
        self._run, self._data, self._device, self._share = run, data, device, share
        self._end: int | None = None
        if run.divides_documents and not data.examples:
            self._end = end_of_documents(data)
        self.packed = data.examples and run.divides_documents
        """Whether a sequence may hold several fine-tuning examples."""
        self.batches = self._open(self.packed)

    def set_packing(self, packed: bool) -> None:
        """Read fine-tuning examples with or without packing."""
        if self._data.examples and self.packed != packed:
            self.packed = packed
            log.info("examples are %s, as in the checkpoint", "packed" if packed else "not packed")
            self.batches = self._open(packed)

    def steps(self) -> int:
        """Return the optimizer steps of a run that starts."""
        return self._steps(self.packed)

    def steps_after(self, packed: bool | None) -> int:
        """Return the optimizer steps of a run that goes on from a checkpoint.

        `packed` is what the checkpoint records. Those of older releases, with None, counted padding
        as tokens.
        """
        return self._run.steps if packed is None else self._steps(packed)

    def _steps(self, packed: bool) -> int:
        """Return the steps; for fine-tuning by tokens, by the mean real tokens of a sequence."""
        if self._run.tokens is None or not self._data.examples:
            return self._run.steps
        batches = self.batches if packed == self.packed else self._open(packed)
        return math.ceil(self._run.tokens / self._run.global_batch / batches.mean_real_tokens())

    def tokens_of(self, sequences: int) -> int:
        """Return the real tokens of the first sequences; for examples, of so many on average."""
        if self._data.examples and sequences:
            return round(sequences * self.batches.mean_real_tokens())
        return sequences * self._run.sequence

    def at(self, first: int) -> StepBatch:
        """Return this rank's part of the step that begins with sequence `first`, from 0."""
        sequences = self.batches.at(first)
        if not self._data.examples:
            division = self.running_text(sequences[0])
            span = None if division.documents is None else attention_span(division.documents)
            count = self._run.tokens_per_step
            return StepBatch(sequences, count, division, ProcessedTokens(count, span))
        examples, tokens, pairs = self.batches.document_totals(first)
        return StepBatch(
            sequences,
            self.batches.loss_tokens(first),
            self._examples(first, examples),
            ProcessedTokens.inside_documents(tokens, pairs),
        )

    def running_text(self, tokens: Tensor) -> Division:
        """Return the division of sequences of running text, (batch, whole length).

        Held-out examples, which are not packed, have none.
        """
        if self._end is None:
            return WHOLE
        return Division(document_numbers(tokens.to(self._device), self._end, self._data.first))

    def _examples(self, first: int, count: int) -> Division:
        """Return the division into examples. `count` is their number in the global batch."""
        balanced = self._run.architecture.experts > 1
        if not self.packed and not balanced:
            return WHOLE
        rows = [
            torch.from_numpy(example_numbers(lengths, self._run.sequence))
            for lengths in self.batches.own_document_lengths(first)
        ]
        numbers = torch.stack(rows).to(self._device)
        return Division(
            documents=numbers if self.packed else None,
            examples=numbers if balanced else None,
            example_count=count if balanced else None,
        )

    def _open(self, packed: bool) -> TrainingBatches:
        run, length = self._run, self._run.sequence if packed else None
        mixture = open_mixture(self._data, TRAIN, run.architecture.vocab_size, length)
        return TrainingBatches(mixture, run.sequence, run.seed, self._share)
