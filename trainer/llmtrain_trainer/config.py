"""The trainer's own view of a job: small frozen values, every default applied.

The border between the API's models and the trainer: what follows knows no optional fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtrain_core.api.base import duration_seconds
from llmtrain_core.api.defaults import HANG_TIMEOUT
from llmtrain_core.api.job import (
    Architecture,
    Data,
    DataSource,
    FailurePolicy,
    GradientSync,
    JobSpec,
    Optimizer,
    Schedule,
    Training,
)
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import Schedule as PipelineSchedule
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_core.plan.model.model_shape import ModelShape, shape_of
from llmtrain_core.validation.check import Job, check
from llmtrain_trainer.errors import InputError

Precision = Literal["float64", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Source:
    """One body of text."""

    name: str
    uri: str
    field: str
    """Path of the URI in the job, for error messages."""
    weight: float = 1.0
    """Share of this source in training, relative to the others."""
    format: str = "auto"
    filter: str = "auto"


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """How conversations become tokens."""

    longest: int
    """Tokens of a sequence: an example has to fit."""
    preset: str | None = None
    template: str | None = None
    """Jinja; without either, the one beside the tokenizer, else `plain`."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Adapters beside frozen weights."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    merge: bool

    def to_metadata(self) -> dict[str, Any]:
        """Return the settings that a checkpoint of adapters depends on, as in `llmtrain.json`."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What to learn from. Everything here changes the prepared data and so its content hash."""

    sources: tuple[Source, ...]
    held_out_fraction: float
    vocab_size: int
    seed: int
    tokenizer: str | None = None
    """URI of a tokenizer.json to use instead of training one."""
    chat: ChatConfig | None = None
    """For fine-tuning on conversations; None: documents."""
    base: str | None = None
    """URI of the checkpoint that training starts from: without a tokenizer of the job's own, its is
    used."""


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up and decay."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    decay: Literal["cosine", "constant"]
    min_ratio: float


@dataclass(frozen=True, slots=True)
class OuterConfig:
    """Outer updates of copies that train apart: SGD with Nesterov momentum."""

    every: int
    """Optimizer steps between two of them."""
    delay: int
    """Steps that training goes on before one arrives."""
    learning_rate: float
    momentum: float


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Where and when training state is saved."""

    uri: str
    every_steps: int
    keep: int
    background: bool
    """Write while training goes on."""
    export: str | None
    """Where to write Hugging Face safetensors after the last step."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a rank needs to know about the job."""

    name: str
    architecture: Architecture
    layout: Layout
    data: DataConfig
    optimizer: OptimizerConfig
    sync: SyncScheme
    """What crosses between copies of the model."""
    outer: OuterConfig | None
    """Absent: copies are alike after every step."""
    checkpoint: CheckpointConfig | None
    steps: int
    global_batch: int
    """Sequences per optimizer step over all ranks."""
    micro_batch: int
    """Sequences per forward pass on one data rank."""
    precision: Precision
    schedule: PipelineSchedule
    chunks: int
    """Model chunks per pipeline rank."""
    recompute: Literal["none", "selective", "full"]
    compile: bool
    seed: int
    hang_timeout: int
    """Seconds without progress after which a rank counts as hung."""
    startup_timeout: int
    """Seconds ranks wait for each other at the start."""
    restarts_in_place: int
    """Restarts of all ranks in the same pods, in a row without a newer checkpoint."""
    probe_every: int | None = None
    """Steps between two probes of the network; None: there are none."""
    init_from: str | None = None
    """URI of the checkpoint whose weights to start from."""
    lora: LoraConfig | None = None
    """Train adapters only."""

    @property
    def shape(self) -> ModelShape:
        """What the plan's formulas ask for: the architecture, and what learns in it."""
        shape, lora = shape_of(self.architecture), self.lora
        return shape if lora is None else shape.with_adapters(lora.rank, lora.targets)

    @property
    def sequence(self) -> int:
        """Tokens per sequence."""
        return self.architecture.sequence_length

    @property
    def replicas(self) -> int:
        """Ranks that see different sequences."""
        return self.layout.data * self.layout.replicate

    @property
    def local_batch(self) -> int:
        """Sequences per optimizer step on one data rank."""
        return self.global_batch // self.replicas

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.local_batch // self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step over all ranks."""
        return self.global_batch * self.sequence


def load_job(path: Path) -> RunConfig:
    """Read the mounted job. Raises InputError (`InvalidSpec`) where it cannot be trained."""
    try:
        document = json.loads(path.read_text())
        name, spec = document["metadata"]["name"], document["spec"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "InvalidSpec",
            f"cannot read the job at {path}: {error!r}",
            remedy="mount the job as JSON with metadata and spec",
        ) from error
    return from_spec(name, spec)


def from_spec(name: str, spec: Mapping[str, Any]) -> RunConfig:
    """Turn a job's spec, as written in a manifest, into a RunConfig."""
    job = check(name, spec)
    if not isinstance(job, Job):
        first = job[0]
        raise InputError(str(first.reason), first.message, field=first.field, remedy=first.remedy)
    training, data, architecture = job.spec.training, job.spec.data, job.architecture
    if training is None or data is None or architecture is None:
        raise InputError(
            "InvalidSpec",
            "this trainer needs model, data and training",
            field="spec.training",
            remedy="fill them in, or set workers.command to run a trainer of your own",
        )
    policy = job.spec.failure_policy or FailurePolicy()
    base = job.spec.model.init_from if job.spec.model else None
    return RunConfig(
        name=name,
        architecture=architecture,
        layout=job.layout,
        data=_data(data, architecture, training.seed, base),
        optimizer=_optimizer(training.optimizer or Optimizer(), training.schedule or Schedule()),
        sync=SyncScheme.of(training.gradient_sync),
        outer=_outer(training.gradient_sync),
        checkpoint=_checkpoint(job.spec),
        steps=job.total_steps,
        global_batch=training.global_batch_size,
        micro_batch=training.micro_batch_size,
        precision=training.precision,
        schedule=job.spec.parallelism.pipeline_schedule,
        chunks=job.spec.parallelism.virtual_stages,
        recompute=training.activation_checkpointing,
        compile=training.compile,
        seed=training.seed,
        hang_timeout=duration_seconds(policy.hang_timeout or HANG_TIMEOUT),
        startup_timeout=duration_seconds(policy.startup_timeout),
        init_from=base,
        lora=_lora(training),
        probe_every=training.collective_probe.every_steps if training.collective_probe else None,
        restarts_in_place=policy.max_restarts_in_place,
    )


def _data(data: Data, architecture: Architecture, seed: int, base: str | None) -> DataConfig:
    return DataConfig(
        sources=tuple(
            Source(
                source.name,
                source.uri,
                f"spec.data.sources[{index}].uri",
                source.weight,
                _format(data, source),
                source.filter,
            )
            for index, source in enumerate(data.sources)
        ),
        held_out_fraction=data.held_out_fraction,
        vocab_size=architecture.vocab_size,
        seed=seed,
        tokenizer=data.tokenizer.uri if data.tokenizer else None,
        chat=_chat(data, architecture),
        base=base,
    )


def _format(data: Data, source: DataSource) -> str:
    """Return a source's format; lines of JSON are conversations where answers are learnt."""
    learns = data.objective == "sft" and source.format in ("auto", "jsonl")
    return "chat" if learns else source.format


def _chat(data: Data, architecture: Architecture) -> ChatConfig | None:
    if data.objective != "sft":
        return None
    chat = data.chat
    return ChatConfig(
        architecture.sequence_length, chat.preset if chat else None, chat.template if chat else None
    )


def _lora(training: Training) -> LoraConfig | None:
    lora = training.lora
    if lora is None:
        return None
    return LoraConfig(lora.rank, lora.alpha, tuple(sorted(lora.targets)), lora.merge)


def _optimizer(optimizer: Optimizer, schedule: Schedule) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=optimizer.learning_rate,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.gradient_clip_norm,
        warmup_steps=schedule.warmup_steps,
        decay=schedule.decay,
        min_ratio=schedule.min_learning_rate_ratio,
    )


def _outer(sync: GradientSync) -> OuterConfig | None:
    outer = sync.outer
    if outer is None:
        return None
    return OuterConfig(
        every=outer.inner_steps,
        delay=outer.delay_steps,
        learning_rate=outer.outer_learning_rate,
        momentum=outer.outer_momentum,
    )


def _checkpoint(spec: JobSpec) -> CheckpointConfig | None:
    if spec.checkpoint is None:
        return None
    return CheckpointConfig(
        uri=spec.checkpoint.uri,
        every_steps=spec.checkpoint.every_steps,
        keep=spec.checkpoint.keep,
        background=spec.checkpoint.async_,
        export=spec.checkpoint.export_hugging_face,
    )
