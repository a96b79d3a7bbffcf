"""The training loop of one rank, the same for every layout."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_trainer.checkpoint.metadata import CheckpointMetadata
from llmtrain_trainer.checkpoint.paths import (
    EXPORT_FIELD,
    URI_FIELD,
    folder_from_uri,
    step_folder,
)
from llmtrain_trainer.checkpoint.resume import resume
from llmtrain_trainer.checkpoint.saver import SaveResult, build_saver
from llmtrain_trainer.checkpoint.state import TrainingState
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.batches import BatchShard
from llmtrain_trainer.data.held_out import HeldOutSequences
from llmtrain_trainer.data.mixture import open_mixture
from llmtrain_trainer.data.prepare import HELD_OUT, PreparedData
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.metrics.collectives import CollectiveMeter
from llmtrain_trainer.metrics.straggler import measure_skew
from llmtrain_trainer.metrics.transfer_times import TransferTimes
from llmtrain_trainer.parallel.adapters import merge
from llmtrain_trainer.parallel.build import build_forward_backward, build_model
from llmtrain_trainer.parallel.context import token_positions
from llmtrain_trainer.parallel.forward_backward import ForwardBackward
from llmtrain_trainer.parallel.fsdp import unit_bytes
from llmtrain_trainer.parallel.grad_norm import clip_gradients
from llmtrain_trainer.parallel.mesh import Grid
from llmtrain_trainer.parallel.replicate.replica_sync import EveryStepSync, build_replica_sync
from llmtrain_trainer.runtime.heartbeat import heartbeat_to
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    EvaluationReport,
    EvaluationTime,
    HeldOutScore,
    PhaseReport,
    SaveFailedReport,
    Send,
    StepReport,
)
from llmtrain_trainer.runtime.step_gate import StepGate
from llmtrain_trainer.training import nan_search, preflight
from llmtrain_trainer.training.autotune import Autotune
from llmtrain_trainer.training.evaluation import Evaluator
from llmtrain_trainer.training.initial_weights import load_initial_weights
from llmtrain_trainer.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from llmtrain_trainer.training.recorder import Recorder
from llmtrain_trainer.training.step_timer import StepTimer
from llmtrain_trainer.training.training_data import TrainingData
from llmtrain_trainer.weights.export import export_checkpoint

SAMPLE_EVERY = 10
"""Steps between two samples of the collectives, at least; a sampled step takes half longer."""

log = logging.getLogger(__name__)


class Trainer:
    """Trains the model of one rank."""

    def __init__(
        self,
        run: RunConfig,
        data: PreparedData,
        device: torch.device,
        send: Send,
        grid: Grid | None = None,
        work_dir: Path | None = None,
        node: str = "",
    ) -> None:
        """`work_dir` has the files that are beside the checkpoints of jobs with any."""
        self.run, self.data, self.device, self.send, self.node = run, data, device, send, node
        self.grid = grid or Grid.build(run.layout, device.type, run.sync)
        self.model = build_model(run, self.grid, device)
        self.transfer_times = TransferTimes(self.grid, run, device, send)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, run.optimizer)
        self.replica_sync = build_replica_sync(self.model, run, self.grid)
        self.forward_backward: ForwardBackward = build_forward_backward(
            self.model, run, self.grid, device, self.replica_sync.complete_gradients
        )
        self.token_positions = token_positions(
            run.sequence, self.grid.coordinate("context"), self.grid.degree("context")
        )
        share = BatchShard(run.global_batch, self.grid.replica, run.replicas)
        self.training_data = TrainingData(run, data, device, share)
        self.run = run = replace(run, steps=self.training_data.steps())
        self.evaluator = self._build_evaluator(run)
        self.state = TrainingState(self.model, self.optimizer, self.replica_sync)
        self.saver = build_saver(run.checkpoint, data.folder, heartbeat_to(send))
        folder = work_dir if self.saver is None else self.saver.root
        self.folder = folder if dist.get_rank() == 0 else None
        """Folder of what rank 0 writes beside the checkpoints."""
        self.recorder = Recorder(self.folder, run.name, run.trackers)
        self.autotune = Autotune(run, unit_bytes(self.model), device, self.synchronize_by, send)
        self.step = self.saved_step = 0
        self.sequences = 0
        """Sequences that all ranks have trained on: the position in the data."""
        self.save_error: Exception | None = None
        self.held_out_before: HeldOutScore | None = None
        self.base: dict[str, Any] | None = None
        """The base of adapters."""

    def train(self, gate: StepGate | None = None) -> None:
        """Resume, evaluate, take all remaining steps, save, evaluate.

        If the launcher stops the job early, take the steps up to its last step, and save.
        """
        try:
            self._train(gate or StepGate())
        finally:
            self.recorder.flush()

    def _start(self, gate: StepGate) -> None:
        """Resume, and evaluate before the first step."""
        preflight.require_same_data(self.data.digest)
        self.autotune.restore(self.folder, self.node)
        self.resume()
        self.load_initial_weights()
        evaluated = self.recorder.resume(self.step, self.training_data.tokens_of(self.sequences))
        if self.held_out_before is None:
            self.held_out_before = self._evaluate("before", gate)
        else:
            self.send(EvaluationReport("before", self.held_out_before, 0))
            if self._evaluation_is_due() and not evaluated:
                self._evaluate("during", gate)
        self.send(PhaseReport("training", self.step, self.run.steps))
        self.autotune.start(self.step)

    def _train(self, gate: StepGate) -> None:
        self._start(gate)
        sample = self.step + 1  # never the first step, which also connects the groups
        limited: Grid | None = None
        """The grid whose collectives have a time limit."""
        while self.step < self.run.steps and gate.start(self.step + 1):
            trying = self.autotune.trying
            due = self.step >= sample and not trying
            sampled = due and self.replica_sync.syncs_at(self.step + 1)
            with self.autotune.trial():
                report = self.take_step(sampled)
            self.recorder.add_step(report, self.training_data.batches.epoch(self.sequences))
            if sampled:
                sample = self.step - 1 + SAMPLE_EVERY
                self.transfer_times.add_step(report.collectives)
            if trying:
                self.autotune.add_step(report)
                sample = self.step + 1
            elif self.run.network_probe_steps and self.step % self.run.network_probe_steps == 0:
                self.transfer_times.probe(self.step)
            if self.grid is not limited:
                # the first step also compiles and connects; from now on a collective that does not
                # end in time fails, unless the launcher's hang check ends the rank first
                self.grid.limit(timedelta(seconds=2 * self.run.hang_timeout))
                limited = self.grid
            if self.run.checkpoint and self.step % self.run.checkpoint.every_steps == 0:
                self.save()
            elif self.saver is not None:
                self.saver.poll(self._report_save)
            if self._evaluation_is_due():
                self._evaluate("during", gate)
                self.send(PhaseReport("training", self.step))
        self.autotune.stop()
        self.save()
        if self.step < self.run.steps:
            self.wait_for_save()
            return
        self._evaluate("after", StepGate())  # a stop loses no work: the step is saved
        self.wait_for_save()
        self.save_merged()
        self.export()
        self.recorder.close()

    def take_step(self, sampled: bool = False) -> StepReport:
        """Take one optimizer step."""
        start, timer = time.perf_counter(), StepTimer(self.device.type)
        grid = self.replica_sync.grid
        meter = CollectiveMeter(self.grid.labels, self.device.type) if sampled else None
        with meter or nullcontext():
            with timer.part("data"):
                batch = self.training_data.at(self.sequences)
                inputs = (*self._local_part(batch.sequences), batch.loss_tokens, batch.division)
            with timer.part("forward_backward"):
                loss = self.forward_backward.train(*inputs)
            with timer.part("clip"):
                norm, mean = clip_gradients(
                    self.parameters,
                    self.run.optimizer.clip_norm,
                    loss * self.replica_sync.independent_replicas,
                    grid,
                )
        if not math.isfinite(mean + norm):  # on all ranks alike: both are sums over all ranks
            nan_search.raise_with_origin(
                f"step {self.step + 1}: the loss is {mean}, the gradient norm {norm}",
                self.model,
                lambda: self.forward_backward.train(*inputs),
                grid,
            )
        rate = learning_rate(self.run.optimizer, self.step, self.run.steps)
        with timer.part("optimizer"):
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.sequences += self.run.global_batch
        with timer.part("copies"), meter or nullcontext():
            self.replica_sync.after_step(self.step, last=self.step == self.run.steps)
        seconds = time.perf_counter() - start
        skew = measure_skew(meter.samples(), seconds, grid, self.device) if meter else None
        report = StepReport(
            step=self.step,
            seconds=seconds,
            phases=timer.parts,
            tokens=batch.processed.real,
            loss=mean,
            grad_norm=norm,
            learning_rate=rate,
            collectives=skew.collectives if skew else (),
            straggler_score=skew.score if skew else None,
            attention_span=batch.processed.attention_span,
        )
        self.send(report)
        return report

    def synchronize_by(self, sync: SyncScheme) -> None:
        """Use another scheme between replicas from now on. Collective over all ranks."""
        assert isinstance(self.replica_sync, EveryStepSync)
        if sync.replicas_per_rack != self.run.sync.replicas_per_rack:
            self.grid = self.grid.with_racks(sync)
        self.run = replace(self.run, sync=sync)
        self.replica_sync.use(self.run, self.grid)
        self.transfer_times = TransferTimes(self.grid, self.run, self.device, self.send)

    def evaluate(self, gate: StepGate | None = None) -> HeldOutScore | None:
        """Return the score on held-out data; None if the gate stops the job before the end."""
        gate = gate or StepGate()
        return self.evaluator.evaluate(lambda: gate.stopping, heartbeat_to(self.send))

    def resume(self) -> None:
        """Resume from the newest complete checkpoint, if there is one."""
        if self.saver is None:
            return

        def require(metadata: CheckpointMetadata) -> None:
            preflight.require_matching_run(metadata, self.data.digest, self._continuation(metadata))

        metadata = resume(
            self.saver.root, self._architecture(), require, self.state, self.saver.group
        )
        if metadata is None:
            return
        self.step = self.saved_step = metadata.step
        self.sequences, self.base = metadata.sequences, metadata.base
        self.run = self._continuation(metadata)
        self.training_data.set_packing(bool(metadata.packed))
        if metadata.held_out_before is not None:
            self.held_out_before = HeldOutScore(
                metadata.held_out_before, metadata.exact_match_before
            )
        log.info(
            "resumed at step %d, after %d sequences (saved as %s by torch %s)",
            *(metadata.step, metadata.sequences, metadata.layout, metadata.torch[:40]),
        )
        self.send(CheckpointReport(metadata.step, {}))

    def load_initial_weights(self) -> None:
        """Load the weights of `model.initFrom`, unless the resumed checkpoint has all weights."""
        if self.run.init_from is None or (self.step and self.run.lora is None):
            return
        record = load_initial_weights(
            self.run.init_from, self._architecture(), self.base, self.model
        )
        if self.run.lora is not None:
            self.base = record

    def save(self) -> None:
        """Write a checkpoint of the current step, or start to, unless it is saved already."""
        if self.saver is None or self.saved_step == self.step:
            return
        nan_search.require_weights(f"after step {self.step}", self.model, self.replica_sync.grid)
        self.send(PhaseReport("saving", self.step))
        self.saved_step = self.step
        self.recorder.flush()  # a resumed run keeps the lines up to this step
        self.saver.save(self._metadata(), self.state, self._report_save)
        self.send(PhaseReport("training", self.step))

    def wait_for_save(self) -> None:
        """Wait for the last checkpoint. Raises TrainerError if it could not be written."""
        if self.saver is None:
            return
        self.saver.wait(self._report_save)
        if self.save_error is not None:
            raise TrainerError(
                "CheckpointNotWritten",
                f"step {self.step}: {self.save_error}",
                field=URI_FIELD,
                remedy="free space there; a restart resumes from the newest complete checkpoint",
            )

    def save_merged(self) -> None:
        """Write the base weights with the adapters merged into them, if the job requests it."""
        if self.saver is None or self.run.lora is None or not self.run.lora.merge:
            return
        self.send(PhaseReport("saving", self.step))
        merge(self.model)
        self.saver.save_merged(replace(self._metadata(), lora=None, base=None), self.model)

    def export(self) -> None:
        """Write the model as a Hugging Face folder, from the checkpoint that was just saved."""
        if self.saver is None or self.run.checkpoint is None or self.run.checkpoint.export is None:
            return
        self.send(PhaseReport("saving", self.step))
        if dist.get_rank() == 0:
            to = folder_from_uri(self.run.checkpoint.export, EXPORT_FIELD)
            root = self.saver.root if self.run.lora is None else self.saver.root / "merged"
            export_checkpoint(step_folder(root, self.step), to, heartbeat=heartbeat_to(self.send))
        dist.barrier(group=self.saver.group)

    def _report_save(self, outcome: SaveResult) -> None:
        """Report a save. After a failed one training continues: the previous checkpoint is kept."""
        self.save_error = outcome.error
        seconds = {"stage": outcome.stage, "upload": outcome.upload}
        failed = outcome.error is not None
        self.send(
            SaveFailedReport(outcome.step) if failed else CheckpointReport(outcome.step, seconds)
        )

    def _build_evaluator(self, run: RunConfig) -> Evaluator:
        held_out = open_mixture(self.data, HELD_OUT, run.architecture.vocab_size)
        return Evaluator(
            HeldOutSequences(held_out, run.sequence, run.evaluate_tokens),
            self.forward_backward,
            run,
            self.grid,
            self.token_positions,
            self.training_data.running_text,
            self.device,
        )

    def _continuation(self, metadata: CheckpointMetadata) -> RunConfig:
        """Return the run as it goes on from a checkpoint."""
        return replace(self.run, steps=self.training_data.steps_after(metadata.packed))

    def _metadata(self) -> CheckpointMetadata:
        before = self.held_out_before
        return CheckpointMetadata(
            step=self.step,
            torch=torch.__version__,
            layout=str(self.run.layout),
            architecture=self._architecture(),
            data=self.data.digest,
            sequences=self.sequences,
            steps=self.run.steps,
            held_out_before=before.loss if before else None,
            exact_match_before=before.exact_match if before else None,
            lora=self.run.lora_metadata,
            base=self.base,
            packed=self.training_data.packed if self.data.examples else None,
        )

    def _evaluate(self, when: EvaluationTime, gate: StepGate) -> HeldOutScore | None:
        """Evaluate, report and record. Trials of variables have no use for it."""
        if self.run.network_tuning is not None:
            return None
        self.send(PhaseReport("evaluating", self.step))
        score = self.evaluate(gate)
        if score is not None:
            self.send(EvaluationReport(when, score, self.step))
            self.recorder.add_evaluation(self.step, score)
        return score

    def _evaluation_is_due(self) -> bool:
        """Return whether there is an evaluation between this step and the next."""
        every = self.run.evaluate_every
        return every is not None and self.step % every == 0 and 0 < self.step < self.run.steps

    def _architecture(self) -> dict[str, object]:
        return self.run.architecture.to_wire()

    def _local_part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Select the token positions of this rank and move them to the device."""
        tokens, targets = (part[:, self.token_positions].to(self.device) for part in batch)
        return tokens, targets
