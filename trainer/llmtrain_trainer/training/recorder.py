"""Record the metrics of a run: on rank 0, in the metrics file."""

from __future__ import annotations

from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.runtime import json_collectives
from llmtrain_trainer.runtime.reports import HeldOutScore, StepReport
from llmtrain_trainer.training.metrics_file import MetricsFile


class Recorder:
    """Records the metrics of a run. It does nothing without a folder: on other ranks than 0."""

    def __init__(self, folder: Folder | None) -> None:
        self._file = None if folder is None else MetricsFile(folder)
        self._tokens = 0

    def resume(self, step: int, tokens: int) -> bool:
        """Continue after `step` steps; return whether they end with an evaluation; collective.

        `tokens` are those of the steps, if the file does not have them.
        """
        evaluated = False
        if self._file is not None:
            self._file.resume(step)
            evaluated = self._file.has_evaluation(step)
            self._tokens = tokens if self._file.tokens is None else self._file.tokens
        return bool(json_collectives.broadcast(evaluated))

    def add_step(self, report: StepReport, epoch: float) -> None:
        """Record a step, after which `epoch` passes over the data are done."""
        self._tokens += report.tokens
        if self._file is not None:
            self._file.add_step(report, self._tokens, epoch)

    def add_evaluation(self, step: int, score: HeldOutScore) -> None:
        """Record an evaluation after a step, unless there is one."""
        if self._file is not None and not self._file.has_evaluation(step):
            self._file.add_evaluation(step, score)

    def flush(self) -> None:
        """Write what is recorded so far."""
        if self._file is not None:
            self._file.flush()
