"""Try communication settings in the first steps on a placement, and keep the fastest.

Every trial is a few ordinary steps of training. Their times are the same on all ranks, because the
slowest rank counts. So all ranks decide alike, and no rank depends on the decision of another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from statistics import median
from typing import Literal

import torch
import torch.distributed as dist

from llmtrain_core.api.defaults import MAX_COMMUNICATION_TRIALS
from llmtrain_core.api.status.communication import CommunicationTrial, CommunicationTuning
from llmtrain_core.network.request import VARIABLE_PREFIXES
from llmtrain_core.plan.autotune import (
    Choices,
    UnitBytes,
    choices,
    search,
    setting_of,
    with_setting,
)
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.errors import TrialError
from llmtrain_trainer.runtime import json_collectives
from llmtrain_trainer.runtime.exception_report import failure_of
from llmtrain_trainer.runtime.reports import CommunicationReport, Send, StepReport
from llmtrain_trainer.training.tuning_file import TuningFile

FIRST_STEPS = 2
"""Steps after a start that no trial measures: they compile and connect."""
WARM_UP_STEPS = 1
"""Steps of a trial that are not measured: its groups connect in the first one."""
MEASURED_STEPS = 3
UNKNOWN_CAUSE = "Exception"
"""Reason of errors that the trainer does not know: lack of memory, errors of NCCL, ..."""

log = logging.getLogger(__name__)


class Autotune:
    """The trials of a job. It does nothing if the job does not ask for them.

    All methods are collective over all ranks.
    """

    def __init__(
        self,
        run: RunConfig,
        unit_bytes: Sequence[int],
        device: torch.device,
        use: Callable[[SyncScheme], None],
        send: Send,
    ) -> None:
        """`unit_bytes`: of the gradients of this rank, by FSDP unit. `use` sets a scheme."""
        self._run, self._start, self._current = run, run.sync, run.sync
        self._unit_bytes, self._device = unit_bytes, device
        self._use, self._send = use, send
        self._state: Literal["Trying", "Chosen", "Reused"] = "Trying"
        self._seconds: dict[SyncScheme, float] = {}
        """Step time of each trial; infinite if the ranks ended in the middle of it."""
        self._unmeasured = 0
        """Steps before the next measured one."""
        self._measured: list[float] = []
        self._file: TuningFile | None = None
        self._placement = ""
        self._choices = Choices()

    @property
    def trying(self) -> bool:
        """True while settings are tried."""
        return bool(self._run.tunable) and self._state == "Trying"

    def restore(self, folder: Folder | None, node: str) -> None:
        """Use what an earlier start has found out on this placement.

        `folder` has the file; None on other ranks than 0. `node` is the node of this rank.
        """
        if not self._run.tunable:
            return
        self._placement = placement_key(self._run, node)
        self._file = None if folder is None else TuningFile(folder)
        own = self._file.read(self._placement) if self._file is not None else None
        wire = json_collectives.broadcast(own.to_wire() if own is not None else None)
        units = self._agree([*_sizes(self._unit_bytes)])
        self._choices = choices(
            self._run.tunable,
            self._start,
            self._run.layout.replicate,
            UnitBytes(*map(int, units)),
        )
        if wire is not None:
            self._restore(CommunicationTuning.from_wire(wire))

    def start(self, step: int) -> None:
        """Start the first trial, after `step` steps."""
        if not self._run.tunable:
            return
        if self.trying:
            self._try_next(step, FIRST_STEPS)
        else:
            self._report(self._current, step)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Raise TrialError for an error whose cause may be a setting that is only tried.

        The setting of the job is not, and errors of the trainer and lost peers have other causes.
        """
        try:
            yield
        except Exception as error:
            failure = failure_of(error)
            own = self._current == self._start
            if own or not self.trying or failure.reason != UNKNOWN_CAUSE:
                raise
            shown = setting_of(self._current).model_dump_json(by_alias=True)
            raise TrialError(
                "CommunicationTrialFailed",
                f"in a trial of the communication setting {shown}: {failure.message}",
                field="spec.training.communication.autotune",
                remedy="it is not tried again on these nodes; with autotune: false, none is",
            ) from error

    def add_step(self, report: StepReport) -> None:
        """Add a step. After the last one of a trial, go on with the next setting."""
        if not self.trying:
            return
        if self._unmeasured:
            self._unmeasured -= 1
            return
        self._measured.append(report.seconds)
        if len(self._measured) < MEASURED_STEPS:
            return
        (self._seconds[self._current],) = self._agree([median(self._measured)])
        self._try_next(report.step, WARM_UP_STEPS)

    def stop(self) -> None:
        """Record that the setting of an unfinished trial is not the cause of its end."""
        if self.trying:
            self._write(self._start)

    def _restore(self, found: CommunicationTuning) -> None:
        replicas = self._run.layout.replicate
        for trial in found.trials:
            sync = with_setting(self._start, trial, replicas)
            if sync is not None:
                self._seconds[sync] = inf if trial.step_seconds is None else trial.step_seconds
        setting = with_setting(self._start, found.setting, replicas)
        if found.state == "Trying":
            if setting is not None:
                self._seconds.setdefault(setting, inf)
            if self._seconds.get(self._start) == inf:
                del self._seconds[self._start]
        elif setting is not None:
            self._state = "Reused"
            self._set(setting)

    def _try_next(self, step: int, unmeasured: int) -> None:
        best, following = search(self._start, self._choices, self._seconds)
        if following is None:
            self._state = "Chosen"
        sync = best if following is None else following
        self._measured, self._unmeasured = [], unmeasured
        self._report(sync, step)  # first, so that the file names a setting that ends the ranks
        self._set(sync)

    def _set(self, sync: SyncScheme) -> None:
        if sync != self._current:
            self._current = sync
            with self.trial():
                self._use(sync)

    def _agree(self, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over all ranks."""
        both = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        agreed: list[float] = both.tolist()
        return agreed

    def _report(self, setting: SyncScheme, step: int) -> None:
        """Write and send the state with a setting from the step after `step`, if this is rank 0."""
        if dist.get_rank() != 0:
            return
        tuning = self._tuning(setting, step + 1)
        self._send(CommunicationReport(tuning))
        if self._state != "Trying":
            shown = tuning.setting.model_dump_json(by_alias=True)
            log.info("communication setting %s, of %d tried", shown, len(tuning.trials))
        if self._state != "Reused":
            self._write(setting, step + 1)

    def _write(self, setting: SyncScheme, step: int = 0) -> None:
        if self._file is not None:
            self._file.write(self._placement, self._tuning(setting, step))

    def _tuning(self, setting: SyncScheme, step: int) -> CommunicationTuning:
        shown = setting_of(setting)
        order = sorted(self._seconds, key=lambda sync: sync != self._start)
        return CommunicationTuning(
            state=self._state,
            setting=shown,
            from_step=step,
            trials=[
                CommunicationTrial(
                    **setting_of(sync).model_dump(),
                    step_seconds=seconds if isfinite(seconds := self._seconds[sync]) else None,
                )
                for sync in order[:MAX_COMMUNICATION_TRIALS]
            ],
        )


def placement_key(run: RunConfig, node: str) -> str:
    """Return a digest of the nodes in order of rank, and of what the step time depends on.

    That includes the variables of each rank that choose or tune its network.
    """
    sync = run.sync
    variables = {
        name: os.environ[name] for name in os.environ if name.startswith(VARIABLE_PREFIXES)
    }
    described = {
        "ranks": json_collectives.all_gather([node, variables]),
        "layout": str(run.layout),
        "schedule": [run.schedule, run.chunks],
        "architecture": run.architecture.to_wire(),
        "lora": run.lora_metadata,
        "batch": [run.global_batch, run.micro_batch],
        "precision": run.precision,
        "recompute": run.recompute,
        "compile": run.compile,
        "compression": sync.compression,
        "setting": setting_of(sync).to_wire(),
        "tunable": sorted(run.tunable),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _sizes(unit_bytes: Sequence[int]) -> tuple[float, int, int]:
    """Return the fields of `UnitBytes` on this rank."""
    return median(unit_bytes or (0,)), max(unit_bytes, default=0), sum(unit_bytes)
