"""Read a job: turn its spec, as written in a manifest, into a RunConfig."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus, read_network_tuning
from llmtrain_core.devices.demand import counted_gpus
from llmtrain_core.plan.autotune import tunable_settings
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_core.validation.check import Job, check
from llmtrain_core.validation.problem import Problem
from llmtrain_trainer.config import (
    CUSTOM_MODEL,
    ChatConfig,
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    NetworkTuningConfig,
    OptimizerConfig,
    OuterOptimizerConfig,
    RunConfig,
    Source,
)
from llmtrain_trainer.errors import InputError


def load_job(path: Path) -> RunConfig:
    """Read the mounted job. Raises InputError (`InvalidSpec`) if it cannot be trained."""
    try:
        document = json.loads(path.read_text())
        metadata, spec = document["metadata"], document["spec"]
        name, namespace = metadata["name"], str(metadata.get("namespace") or "")
        known = read_network_tuning(document.get("networkTuning"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "InvalidSpec",
            f"cannot read the job at {path}: {error!r}",
            remedy="mount the job as JSON with metadata and spec",
        ) from error
    return from_spec(name, spec, namespace, known)


def from_spec(
    name: str,
    spec: Mapping[str, Any],
    namespace: str = "",
    known: NetworkTuningStatus | None = None,
) -> RunConfig:
    """Turn a job's spec into a RunConfig. `known`: the trials of earlier attempts."""
    job, training, data, architecture = _trained(check(name, spec))
    policy = job.spec.failure_policy or FailurePolicy()
    model, probe = job.spec.model, training.collective_probe
    init_from = model.init_from if model else None
    return RunConfig(
        name=name,
        architecture=architecture,
        layout=job.layout,
        ranks_per_node=job.gpus_per_node,
        data=_data(data, architecture, training.seed, init_from),
        optimizer=_optimizer(training.optimizer or Optimizer(), training.schedule or Schedule()),
        sync=SyncScheme.of(training),
        tunable=tunable_settings(training),
        outer_optimizer=_outer_optimizer(training.gradient_sync),
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
        init_from=init_from,
        lora=_lora(training),
        divides_documents=data.divides_documents,
        tokens=training.tokens,
        packing=data.packing,
        network_tuning=_network_tuning(job.spec, known),
        network_probe_steps=probe.every_steps if probe else None,
        evaluate_every=training.evaluate_every_steps,
        evaluate_tokens=training.evaluate_tokens,
        trackers=tuple(training.trackers or ()),
        max_restarts_in_place=policy.max_restarts_in_place,
        grace_seconds=job.spec.workers.grace_seconds,
        namespace=namespace,
        model=(model.preset if model else None) or CUSTOM_MODEL,
    )


def _trained(job: Job | list[Problem]) -> tuple[Job, Training, Data, Architecture]:
    """Return a job with what this trainer needs of it. Raises InputError."""
    if not isinstance(job, Job):
        first = job[0]
        raise InputError(str(first.reason), first.message, field=first.field, remedy=first.remedy)
    training, data, architecture = job.spec.training, job.spec.data, job.architecture
    if training is None or data is None or architecture is None:
        raise InputError(
            "InvalidSpec",
            "this trainer needs model, data and training",
            field="spec.training",
            remedy="set them, or set workers.command to run another trainer",
        )
    return job, training, data, architecture


def _data(data: Data, architecture: Architecture, seed: int, init_from: str | None) -> DataConfig:
    return DataConfig(
        sources=tuple(
            Source.of(source, f"spec.data.sources[{index}].uri", _format(data, source))
            for index, source in enumerate(data.sources)
        ),
        held_out_fraction=data.held_out_fraction,
        vocab_size=architecture.vocab_size,
        seed=seed,
        tokenizer=data.tokenizer.uri if data.tokenizer else None,
        chat=_chat(data, architecture),
        init_from=init_from,
    )


def _format(data: Data, source: DataSource) -> str:
    """Return the format of a source. For fine-tuning, JSON lines are conversations."""
    finetunes = data.objective == "sft" and source.format in ("auto", "jsonl")
    return "chat" if finetunes else source.format


def _chat(data: Data, architecture: Architecture) -> ChatConfig | None:
    if data.objective != "sft":
        return None
    chat = data.chat
    return ChatConfig(
        architecture.sequence_length,
        preset=chat.preset if chat else None,
        template=chat.template if chat else None,
        overlong=data.overlong,
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


def _outer_optimizer(sync: GradientSync) -> OuterOptimizerConfig | None:
    outer = sync.outer
    if outer is None:
        return None
    return OuterOptimizerConfig(
        inner_steps=outer.inner_steps,
        delay_steps=outer.delay_steps,
        learning_rate=outer.outer_learning_rate,
        momentum=outer.outer_momentum,
    )


def _network_tuning(spec: JobSpec, known: NetworkTuningStatus | None) -> NetworkTuningConfig | None:
    tuning = spec.network.tuning if spec.network else None
    if tuning is None:
        return None
    candidates = None if tuning.candidates is None else tuple(tuning.candidates)
    return NetworkTuningConfig(candidates, counted_gpus(spec.workers), known)


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
