"""The lines about the training in the log of a pod: one per phase, and one about every 10 s."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.status.network_tuning import (
    NetworkTrial,
    NetworkTuningStatus,
    variables_text,
)
from llmtrain_trainer.launcher.restart.network_trials import INTERRUPTED
from llmtrain_trainer.launcher.status import Status
from llmtrain_trainer.runtime.log_format import write_line
from llmtrain_trainer.runtime.reports import EvaluationReport, PhaseReport, Report, StepReport

LOG_SECONDS = 10.0
"""Time between two lines about steps, at least."""

SHOWN_SOURCES = 16
"""Most sources whose held-out loss is in a line. The metrics file has all."""

_TRIAL_LENGTH = 256
"""Length of the variables of a trial in a line."""


class ProgressLog:
    """Writes what the lowest rank of a pod reports."""

    def __init__(
        self,
        shows_steps: bool,
        write: Callable[[str], None] = write_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shows_steps` is true in the pod of rank 0: all others would write the same lines."""
        self._shows_steps, self._write, self._clock = shows_steps, write, clock
        self._last = -LOG_SECONDS
        self._phase: str | None = None
        self._trial: NetworkTrial | None = None

    def on_report(self, report: Report, status: Status) -> None:
        """Write a line for a report, if it is due. `status` has the report."""
        if isinstance(report, PhaseReport):
            self.on_phase(status)
        elif self._shows_steps and isinstance(report, StepReport):
            self._on_step(report, status)
        elif self._shows_steps and isinstance(report, EvaluationReport):
            self._write(_evaluation(report))

    def on_phase(self, status: Status) -> None:
        """Write the phase if it has changed. The next step then has a line."""
        if status.phase != self._phase:
            if self._phase in (None, "preparing", "starting"):
                self._last = -LOG_SECONDS
            self._phase = status.phase
            self._write(f"{status.phase}, step {status.step} of {status.total_steps}")

    def on_network_tuning(self, tuning: NetworkTuningStatus) -> None:
        """Write the trial of variables that starts or has ended. Its first step has a line."""
        trial = tuning.trials[-1] if tuning.trials else None
        if trial is None or trial == self._trial:
            return
        self._trial, self._last = trial, -LOG_SECONDS
        result = trial.failure or "starts"
        if trial.failure == INTERRUPTED and tuning.state == "Trying":
            result = "starts again"  # the pods ended in the middle of it
        if trial.step_seconds is not None:
            result = f"{trial.step_seconds:.3g} s per step"
        name = clean_text(variables_text(trial.variables), _TRIAL_LENGTH)
        self._write(f"trial {len(tuning.trials)}, {name}: {result}")

    def _on_step(self, report: StepReport, status: Status) -> None:
        self._phase = "training"
        now = self._clock()
        if now - self._last >= LOG_SECONDS or report.step == status.total_steps:
            self._last = now
            self._write(_step(report, status))


def _step(report: StepReport, status: Status) -> str:
    seconds = status.step_seconds or report.seconds
    left = timedelta(seconds=round(max(0, status.total_steps - report.step) * seconds))
    parts = [
        f"loss {report.loss:.4f}",
        f"gradient norm {report.grad_norm:.3g}",
        f"learning rate {report.learning_rate:.3g}",
        f"{status.tokens_per_second or 0:,.0f} tokens/s",
        f"{seconds:.3g} s per step",
        *([f"MFU {status.mfu:.1%}"] if status.mfu is not None else []),
        f"{left} left",
    ]
    return f"step {report.step} of {status.total_steps}: {', '.join(parts)}"


def _evaluation(report: EvaluationReport) -> str:
    score = report.score
    text = f"step {report.step}: held-out loss {score.loss:.4f}"
    if score.exact_match is not None:
        text += f", exact match {score.exact_match:.1%}"
    if len(score.losses) > 1:
        shown = [f"{name} {loss:.4f}" for name, loss in score.losses.items()][:SHOWN_SOURCES]
        text += f" ({', '.join(shown)})"
    return text
