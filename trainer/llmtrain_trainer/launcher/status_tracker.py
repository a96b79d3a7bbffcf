"""Keep the pod's status and metrics up to date from the reports of its ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from llmtrain_core.api import env
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import CHAT_TEMPLATE_LENGTH
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.status.job import TrainerPhase
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus
from llmtrain_core.network.group_reports import SlowdownReport, slowdowns
from llmtrain_core.network.links import Group
from llmtrain_core.network.transfer_times import JobTimes, record
from llmtrain_core.plan.model.flops import CONVENTIONS, Convention, training_flops_per_token
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.launcher.http_server import Response, Routes
from llmtrain_trainer.launcher.progress_log import ProgressLog
from llmtrain_trainer.launcher.status import LastRestart, Status
from llmtrain_trainer.metrics.devices import DeviceUse
from llmtrain_trainer.metrics.registry import TrainingMetrics
from llmtrain_trainer.runtime.locked_memory import MEMLOCK_TOO_LOW
from llmtrain_trainer.runtime.pod_env import MetricsDetail
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CommunicationReport,
    EvaluationReport,
    HeartbeatReport,
    NcclReport,
    PhaseReport,
    ProbeReport,
    Report,
    SaveFailedReport,
    StepReport,
    TransferReport,
)

SHOWN: Convention = "causal-attention"
"""Convention of the MFU in `/status`."""

SMOOTHING = 0.2
"""Weight of the last step in the shown rate; single steps vary with sampling and saving."""


class StatusTracker:
    """Status and metrics of one pod; its lowest rank reports the state of the job."""

    def __init__(
        self,
        ranks: tuple[int, ...],
        attempt: int,
        detail: MetricsDetail = "basic",
        log: ProgressLog | None = None,
    ) -> None:
        self._ranks, self._lowest_rank = ranks, min(ranks)
        self._run: RunConfig | None = None
        self._peak_flops = 0.0
        self._has_first_step = self._has_usual_step = False
        self._transfers, self._transfer_blocks = JobTimes(""), 0
        self.on_checkpoint: Callable[[int], None] = lambda step: None
        """Called for every complete checkpoint; in the pod of rank 0 only."""
        self.on_step: Callable[[float], None] = lambda seconds: None
        """Called with the seconds of every step of the lowest rank."""
        self.status = Status(attempt=attempt).with_progress()
        self._log = log or ProgressLog(self._is_rank_0)
        self.metrics = TrainingMetrics(detail)
        if self._is_rank_0:
            self.metrics.start_job_counters()

    @property
    def _is_rank_0(self) -> bool:
        """True in the pod of rank 0, which exports the metrics of the job."""
        return self._lowest_rank == 0

    def set_job(self, run: RunConfig) -> None:
        """Set the job, which is read after the server has started."""
        self._run = run
        self.metrics.set_ranks(self._ranks, run.layout)
        if self._is_rank_0:
            self.metrics.set_job(run)
        self._set_total_steps(run.steps)
        self._log.on_phase(self.status)

    def set_chat_template(self, template: str | None) -> None:
        """Set where the chat template of the job comes from; None if it has none."""
        shown = clean_text(template, CHAT_TEMPLATE_LENGTH) if template else None
        self.status = replace(self.status, chat_template=shown)

    def set_peak_flops(self, peak_flops: float) -> None:
        """Set the peak FLOP/s of one rank's device; 0 if unknown."""
        self._peak_flops = peak_flops

    def on_report(self, rank: int, report: Report) -> None:
        """Record a report of a rank."""
        if isinstance(report, StepReport):
            self.metrics.observe_rank_step(report, self._ranks.index(rank))
        elif isinstance(report, ProbeReport):
            self.metrics.observe_network_probe(report)
        if rank != self._lowest_rank:
            return
        if isinstance(report, StepReport):
            self._on_step(report)
            self.on_step(report.seconds)
        elif isinstance(report, TransferReport):
            self._on_transfers(report)
        elif isinstance(report, CommunicationReport):
            self.status = replace(self.status, communication=report.tuning)
        elif isinstance(report, NcclReport):
            self.status = replace(self.status, nccl=report)
        elif isinstance(report, HeartbeatReport):
            self.status = self.status.with_progress()
        elif isinstance(report, PhaseReport):
            self.status = self.status.with_progress(phase=report.phase, step=report.step)
            if report.total_steps is not None:
                self._set_total_steps(report.total_steps)
        elif isinstance(report, EvaluationReport):
            score, when = report.score, report.when
            self.status = self.status.with_progress(
                **{f"held_out_loss_{when}": score.loss, f"exact_match_{when}": score.exact_match}
            )
            if self._is_rank_0:
                self.metrics.observe_evaluation(report)
        elif isinstance(report, CheckpointReport):
            self.status = self.status.with_progress(last_checkpoint_step=report.step)
            if self._is_rank_0:
                self.metrics.observe_checkpoint(report)
                self.on_checkpoint(report.step)
        elif isinstance(report, SaveFailedReport) and self._is_rank_0:
            self.metrics.observe_failed_save()
        self._log.on_report(report, self.status)

    def enter(self, phase: TrainerPhase) -> None:
        """Enter a phase of the launcher itself."""
        self.status = self.status.with_progress(phase=phase)
        self._log.on_phase(self.status)

    def on_restart(self, cause: FailureInfo, time: datetime) -> None:
        """Record a restart in place and the time of the decision."""
        self._has_first_step = self._has_usual_step = False
        self.status = self.status.with_progress(
            phase="starting",
            restarts_in_place=self.status.restarts_in_place + 1,
            last_restart=LastRestart(time, cause),
        )
        self._log.on_phase(self.status)
        if self._is_rank_0:
            self.metrics.observe_restart()

    def on_next_trial(self) -> None:
        """Record that the ranks of a trial have ended and those of the next one start."""
        self._has_first_step = self._has_usual_step = False
        self.status = self.status.with_progress(
            phase="starting", step=0, step_seconds=None, tokens_per_second=None, mfu=None
        )

    def on_network_tuning(self, tuning: NetworkTuningStatus) -> None:
        """Record the trials of variables so far."""
        self.status = replace(self.status, network_tuning=tuning)
        self._log.on_network_tuning(tuning)

    def on_network_fallback(self, why: str) -> None:
        """Record why the ranks of the gang use TCP instead of RDMA."""
        self.status = replace(self.status, network_fallback=f"{MEMLOCK_TOO_LOW}: {why}"[:512])

    def on_devices(self, source: str, uses: list[DeviceUse]) -> None:
        """Record the state of the pod's devices."""
        self.metrics.observe_devices(source, uses)
        if not uses:
            return
        now = sum(use.ratio for use in uses) / len(uses)
        ratio = _smooth(self.status.utilization_ratio, now)
        # without a heartbeat: a hung rank is busy too
        self.status = replace(self.status, utilization_source=source, utilization_ratio=ratio)

    def routes(self) -> Routes:
        """Return the routes of the HTTP server."""
        return {
            env.METRICS_PATH: lambda: Response(
                self.metrics.exposition(), "text/plain; version=0.0.4; charset=utf-8"
            ),
            env.STATUS_PATH: lambda: Response(
                json.dumps(self.status.document(), allow_nan=False).encode(), "application/json"
            ),
            "/healthz": lambda: Response(b"ok\n", "text/plain"),
        }

    def _set_total_steps(self, steps: int) -> None:
        self.status = self.status.with_progress(total_steps=steps)
        if self._is_rank_0:
            self.metrics.set_total_steps(steps)

    def _on_step(self, report: StepReport) -> None:
        before = self.status
        # the first step after a start also connects the groups; a sampled one waits for collectives
        usual = self._has_first_step and not report.collectives
        self._has_first_step = True
        seconds = before.step_seconds
        if usual or seconds is None:
            seconds = _smooth(seconds if self._has_usual_step else None, report.seconds)
        self._has_usual_step = self._has_usual_step or usual
        rate = report.tokens / seconds
        mfu = self._mfu(rate, report.attention_span)
        self.status = before.with_progress(
            phase="training",
            step=report.step,
            loss=report.loss,
            grad_norm=report.grad_norm,
            step_seconds=seconds,
            tokens_per_second=rate,
            mfu=mfu.get(SHOWN),
            collectives=report.collectives or before.collectives,
        )
        if self._is_rank_0:
            left = before.total_steps - report.step
            self.metrics.observe_job_step(report, mfu, left * seconds if self._run else None)

    def _on_transfers(self, report: TransferReport) -> None:
        """Compare the transfer times with the usual ones, which a restart in place keeps."""
        blocks = [
            (report.kind, f"{label} {rank}", Group(label, rank, frozenset()), each.block)
            for each in report.groups
            for label, rank in (each.group,)
        ]
        self._transfers = record(self._transfers, blocks)
        self._transfer_blocks += 1
        found = SlowdownReport(self._transfer_blocks, slowdowns(self._transfers))
        if found.groups:
            self.status = replace(self.status, transfers=found.to_wire())

    def _mfu(self, tokens_per_second: float, attention_span: float | None) -> dict[str, float]:
        if self._run is None or not self._peak_flops:
            return {}
        peak = self._peak_flops * self._run.layout.world_size
        shape = self._run.shape
        return {
            convention: training_flops_per_token(shape, convention, attention_span)
            * tokens_per_second
            / peak
            for convention in CONVENTIONS
        }


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTHING * (now - before)
