"""What the launcher makes of the ranks' reports: the pod's status and its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from llmtrain_core.api import env
from llmtrain_core.api.failure import FailureInfo
from llmtrain_core.plan.model.flops import CONVENTIONS, Convention, training_flops_per_token
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.launcher.http_server import Page
from llmtrain_trainer.launcher.status import LastRestart, Status
from llmtrain_trainer.metrics.gpu_use import DeviceUse
from llmtrain_trainer.metrics.registry import TrainingMetrics
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    EvaluationReport,
    HeartbeatReport,
    PhaseReport,
    ProbeReport,
    Report,
    SaveFailedReport,
    StepReport,
)

SHOWN: Convention = "causal-attention"
"""Convention of the one figure in `/status`."""

SMOOTHING = 0.2
"""Weight of the newest step in the shown rate; single steps jump with sampling and saving."""


class Progress:
    """Status and metrics of one pod; its lowest rank speaks for the job."""

    def __init__(self, ranks: tuple[int, ...], attempt: int) -> None:
        self._ranks, self._lead = ranks, min(ranks)
        self._run: RunConfig | None = None
        self._peak = 0.0
        self._connected = self._measured = False
        self.on_checkpoint: Callable[[int], None] = lambda step: None
        """Told of every complete checkpoint; in the pod of rank 0 only."""
        self.status = Status(attempt=attempt).beat()
        self.metrics = TrainingMetrics()

    def know_job(self, run: RunConfig) -> None:
        """Take the job as soon as it has been read."""
        self._run = run
        self.status = self.status.beat(total_steps=run.steps)

    def know_peak(self, peak: float) -> None:
        """Take the peak FLOP/s of one rank's device; 0 when unknown."""
        self._peak = peak

    def hear(self, rank: int, report: Report) -> None:
        """Take a rank's report."""
        if isinstance(report, StepReport):
            self.metrics.observe_rank_step(report, self._ranks.index(rank))
        elif isinstance(report, ProbeReport):
            self.metrics.observe_probe(report)
        if rank != self._lead:
            return
        if isinstance(report, StepReport):
            self._hear_step(report)
        elif isinstance(report, HeartbeatReport):
            self.status = self.status.beat()
        elif isinstance(report, PhaseReport):
            self.status = self.status.beat(phase=report.phase, step=report.step)
        elif isinstance(report, EvaluationReport):
            found, when = report.held_out, report.when
            self.status = self.status.beat(
                **{f"held_out_loss_{when}": found.loss, f"exact_match_{when}": found.exact_match}
            )
        elif isinstance(report, CheckpointReport):
            self.status = self.status.beat(last_checkpoint_step=report.step)
            if self._lead == 0:
                self.metrics.observe_checkpoint(report)
                self.on_checkpoint(report.step)
        elif isinstance(report, SaveFailedReport) and self._lead == 0:
            self.metrics.observe_failed_save()

    def restart(self, cause: FailureInfo, agreed: datetime) -> None:
        """All ranks start again in their pods, as the launchers agreed then."""
        self._connected = self._measured = False
        self.status = self.status.beat(
            phase="starting",
            restarts_in_place=self.status.restarts_in_place + 1,
            last_restart=LastRestart(agreed, cause),
        )
        if self._lead == 0:
            self.metrics.observe_restart()

    def see_devices(self, source: str, uses: list[DeviceUse]) -> None:
        """Take the state of the pod's devices."""
        self.metrics.observe_devices(source, uses)
        if not uses:
            return
        now = sum(use.ratio for use in uses) / len(uses)
        ratio = _smooth(self.status.utilization_ratio, now)
        # no heartbeat: a hung rank is busy too
        self.status = self.status.quietly(utilization_source=source, utilization_ratio=ratio)

    def pages(self) -> Mapping[str, Any]:
        """Return the HTTP pages."""
        return {
            env.METRICS_PATH: lambda: Page(
                self.metrics.exposition(), "text/plain; version=0.0.4; charset=utf-8"
            ),
            env.STATUS_PATH: lambda: Page(
                json.dumps(self.status.document(), allow_nan=False).encode(), "application/json"
            ),
            "/healthz": lambda: Page(b"ok\n", "text/plain"),
        }

    def _hear_step(self, report: StepReport) -> None:
        before = self.status
        # the first step after a start also plans and connects, a sampled one also measures
        usual = self._connected and not report.collectives
        self._connected = True
        seconds = before.step_seconds
        if usual or seconds is None:
            seconds = _smooth(seconds if self._measured else None, report.seconds)
        self._measured = self._measured or usual
        rate = report.tokens / seconds
        mfu = self._utilization(rate)
        self.status = before.beat(
            phase="training",
            step=report.step,
            loss=report.loss,
            grad_norm=report.grad_norm,
            step_seconds=seconds,
            tokens_per_second=rate,
            mfu=mfu.get(SHOWN),
            collectives=report.collectives or before.collectives,
        )
        if self._lead == 0:
            self.metrics.observe_job_step(report, mfu)

    def _utilization(self, tokens_per_second: float) -> dict[str, float]:
        if self._run is None or not self._peak:
            return {}
        peak = self._peak * self._run.layout.world_size
        shape = self._run.shape
        return {
            convention: training_flops_per_token(shape, convention) * tokens_per_second / peak
            for convention in CONVENTIONS
        }


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTHING * (now - before)
