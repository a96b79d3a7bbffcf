"""Record the metrics of a run: on rank 0, in the metrics file and with the trackers of the job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.runtime import json_collectives
from llmtrain_trainer.runtime.reports import HeldOutScore, StepReport
from llmtrain_trainer.training.metrics_file import MetricsFile, MetricsLine
from llmtrain_trainer.training.trackers import TrackedRun, Trackers


class Recorder:
    """Records the metrics of a run. It does nothing without a folder: on other ranks than 0."""

    def __init__(self, folder: Folder | None, name: str, trackers: Sequence[str]) -> None:
        self._folder, self._name, self._names = folder, name, trackers
        self._file = None if folder is None else MetricsFile(folder)
        self._trackers: Trackers | None = None
        self._tokens = self._step = 0

    def resume(self, step: int, tokens: int) -> bool:
        """Continue after `step` steps; return whether they end with an evaluation; collective.

        `tokens` are those of the steps, if the file does not have them.
        """
        evaluated = False
        self._step = step
        if self._file is not None:
            self._file.resume(step)
            evaluated = self._file.has_evaluation(step)
            self._tokens = tokens if self._file.tokens is None else self._file.tokens
        return bool(json_collectives.broadcast(evaluated))

    def add_step(self, report: StepReport, epoch: float) -> None:
        """Record a step, after which `epoch` passes over the data are done."""
        self._tokens += report.tokens
        if self._file is not None:
            self._track(self._file.add_step(report, self._tokens, epoch))

    def add_evaluation(self, step: int, score: HeldOutScore) -> None:
        """Record an evaluation after a step, unless there is one."""
        if self._file is not None and not self._file.has_evaluation(step):
            self._track(self._file.add_evaluation(step, score))

    def flush(self) -> None:
        """Write what is recorded so far."""
        if self._file is not None:
            self._file.flush()
        if self._trackers is not None:
            self._trackers.flush()

    def close(self) -> None:
        """End the run with the trackers, which may wait for their services."""
        if self._trackers is not None:
            self._trackers.close()

    def _track(self, line: MetricsLine) -> None:
        if not self._names or self._folder is None or self._file is None:
            return
        if self._trackers is None:
            # the first line is the same after every restart, and another one in another run
            identity = f"{self._name} {self._file.start}"
            key = hashlib.sha256(identity.encode()).hexdigest()[:16]
            self._trackers = Trackers(
                self._names, TrackedRun(self._name, key, self._folder, self._step)
            )
        self._trackers.write(line)
