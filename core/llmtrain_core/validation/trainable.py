"""Check that the trainer can run a model in a layout: divisibility, batch size, features."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import Architecture, JobSpec, Training
from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import (
    SPLIT_BACKWARD,
    check_chunks,
    equal_rounds,
    min_micro_batches,
)
from llmtrain_core.validation.family import FAMILIES, NO_FAMILY, hugging_face_family
from llmtrain_core.validation.problem import Problem


def training_problems(
    spec: JobSpec, layout: Layout, architecture: Architecture
) -> Iterator[Problem]:
    """Yield the reasons why the trainer cannot run this job."""
    if spec.training is None:
        return
    yield from _tensor_problems(layout, architecture)
    yield from _context_problems(layout, architecture)
    yield from _expert_problems(layout, architecture)
    yield from _stage_problems(spec, layout, architecture)
    yield from _batch_problems(spec, spec.training, layout)
    yield from _compiler_problems(spec, spec.training, layout, architecture)
    yield from _replica_problems(spec.training, layout)
    yield from _base_problems(spec, spec.training)
    yield from _adapter_problems(spec.training, architecture)
    yield from _export_problems(spec, spec.training, architecture)


def _tensor_problems(layout: Layout, architecture: Architecture) -> Iterator[Problem]:
    for what, value in (
        ("heads", architecture.heads),
        ("kvHeads", architecture.key_value_heads),
        ("ffnSize", architecture.ffn_size),
        ("vocabSize", architecture.vocab_size),
        ("sequenceLength", architecture.sequence_length),
    ):
        if value % layout.tensor:
            yield Problem(
                Reason.INVALID_SPEC,
                "spec.parallelism.tensor",
                f"{layout.tensor} does not divide the model's {value} {what}",
                f"choose a divisor of {value}",
            )


def _context_problems(layout: Layout, architecture: Architecture) -> Iterator[Problem]:
    if layout.context == 1:
        return
    length, pieces = architecture.sequence_length, 2 * layout.context
    if length % pieces or length // layout.context % layout.tensor:
        least = pieces if layout.context * layout.tensor <= pieces else pieces * layout.tensor
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.parallelism.context",
            f"{length} tokens cannot be split into {pieces} equal chunks, two for each of"
            f" {layout.context} context ranks, and over {layout.tensor} tensor ranks",
            f"choose a sequenceLength that is a multiple of {least}",
        )


def _expert_problems(layout: Layout, architecture: Architecture) -> Iterator[Problem]:
    field = "spec.parallelism.expert"
    experts, hidden = architecture.experts, architecture.hidden_size
    ranks = layout.data * layout.context
    if ranks % layout.expert:
        yield Problem(
            Reason.INVALID_SPEC,
            field,
            f"{layout.expert} does not divide the {ranks} data and context ranks",
            f"choose a divisor of {ranks}",
        )
    elif experts % layout.expert:
        yield Problem(
            Reason.INVALID_SPEC,
            field,
            f"{layout.expert} does not divide the model's {experts} experts",
            f"choose a divisor of {experts}" if experts > 1 else "remove it, or set experts",
        )
    elif experts > 1 and hidden % (ranks // layout.expert):
        yield Problem(
            Reason.INVALID_SPEC,
            field,
            f"{ranks // layout.expert} ranks cannot shard the {hidden} columns of an expert evenly",
            "choose degrees with which (data x context / expert) divides hiddenSize",
        )


def _stage_problems(spec: JobSpec, layout: Layout, architecture: Architecture) -> Iterator[Problem]:
    schedule, chunks = spec.parallelism.pipeline_schedule, spec.parallelism.virtual_stages
    if layout.pipeline == 1:
        if chunks > 1:
            yield Problem(
                Reason.INVALID_SPEC,
                "spec.parallelism.virtualStages",
                f"{chunks} virtual stages without a pipeline",
                "set parallelism.pipeline, or remove the field",
            )
        return
    try:
        check_chunks(schedule, chunks)
    except PlanError as error:
        yield Problem(
            Reason.INVALID_SPEC, "spec.parallelism.virtualStages", error.message, error.remedy
        )
    if layout.pipeline * chunks > architecture.layers:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.parallelism.pipeline",
            f"{layout.pipeline * chunks} stages for {architecture.layers} layers",
            f"use at most {architecture.layers} (pipeline x virtualStages)",
        )


def _batch_problems(spec: JobSpec, training: Training, layout: Layout) -> Iterator[Problem]:
    schedule, stages = spec.parallelism.pipeline_schedule, layout.pipeline
    replicas = layout.data * layout.replicate
    share = replicas * training.micro_batch_size
    micro_batches, rest = divmod(training.global_batch_size, share)
    if rest:
        yield Problem(
            Reason.WORLD_SIZE_MISMATCH,
            "spec.training.globalBatchSize",
            f"{training.global_batch_size} sequences cannot be split into micro-batches of"
            f" {training.micro_batch_size} over {replicas} data ranks",
            f"use a multiple of {share}",
        )
    elif micro_batches < min_micro_batches(schedule, stages):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.training.globalBatchSize",
            f"{micro_batches} micro-batches cannot fill {stages} pipeline stages of {schedule}",
            f"use at least {share * min_micro_batches(schedule, stages)}",
        )
    elif not equal_rounds(schedule, stages, micro_batches):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.training.globalBatchSize",
            f"{schedule} cannot split {micro_batches} micro-batches over {stages} stages in equal"
            " rounds",
            f"use {micro_batches // stages * stages * share}",
        )


def _compiler_problems(
    spec: JobSpec, training: Training, layout: Layout, architecture: Architecture
) -> Iterator[Problem]:
    if not training.compile:
        return
    schedule = spec.parallelism.pipeline_schedule
    splits = layout.pipeline > 1 and schedule in SPLIT_BACKWARD
    unsupported = {
        "tensor and context parallelism": layout.tensor > 1 or layout.context > 1,
        f"the split backward pass of {schedule}": splits,
        "experts": architecture.experts > 1,
        "selective checkpointing: the compiler selects activations itself": (
            training.activation_checkpointing == "selective"
        ),
    }
    for what, is_used in unsupported.items():
        if is_used:
            yield Problem(
                Reason.NOT_YET_SUPPORTED,
                "spec.training.compile",
                f"compilation does not support {what}",
                "set it to false",
            )


def _replica_problems(training: Training, layout: Layout) -> Iterator[Problem]:
    """Check that gradient synchronization has replicas, and racks of equal size."""
    sync, replicas = training.gradient_sync, layout.replicate
    settings = {
        "gradientSync.compression": sync.compression != "none",
        "gradientSync.mode": sync.mode != "every-step",
        "gradientSync.copiesPerRack": sync.copies_per_rack > 1,
        "communication": training.communication is not None,
    }
    if replicas == 1:
        for name, is_set in settings.items():
            if is_set:
                yield Problem(
                    Reason.INVALID_SPEC,
                    f"spec.training.{name}",
                    "there is only one model replica",
                    "set parallelism.replicate to the number of replicas, or remove the field",
                )
    elif replicas % sync.copies_per_rack:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.training.gradientSync.copiesPerRack",
            f"{replicas} replicas cannot be divided into racks of {sync.copies_per_rack}",
            f"choose a divisor of {replicas}",
        )


def _base_problems(spec: JobSpec, training: Training) -> Iterator[Problem]:
    if spec.model and spec.model.init_from and training.gradient_sync.mode != "every-step":
        yield Problem(
            Reason.NOT_YET_SUPPORTED,
            "spec.training.gradientSync.mode",
            "outer updates do not support initial weights",
            "use every-step, or remove model.initFrom",
        )


def _export_problems(
    spec: JobSpec, training: Training, architecture: Architecture
) -> Iterator[Problem]:
    if spec.checkpoint is None or spec.checkpoint.export_hugging_face is None:
        return
    field = "spec.checkpoint.exportHuggingFace"
    if hugging_face_family(architecture) is None:
        yield Problem(
            Reason.NOT_YET_SUPPORTED,
            field,
            NO_FAMILY,
            f"remove it, or use the architecture of {FAMILIES}",
        )
    if training.lora is not None and not training.lora.merge:
        yield Problem(
            Reason.INVALID_SPEC,
            field,
            "adapters can only be exported after merging into the base weights",
            "set training.lora.merge",
        )


def _adapter_problems(training: Training, architecture: Architecture) -> Iterator[Problem]:
    if training.lora is None:
        return
    if architecture.experts > 1:
        yield Problem(
            Reason.NOT_YET_SUPPORTED,
            "spec.training.lora",
            "adapters do not support experts",
            "remove it, or choose a model without experts",
        )
    if "gate_proj" in training.lora.targets and architecture.activation != "swiglu":
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.training.lora.targets",
            f"a layer with {architecture.activation} has no gate_proj",
            "remove it from the list",
        )
    if training.compile:
        yield Problem(
            Reason.NOT_YET_SUPPORTED,
            "spec.training.compile",
            "compilation does not support adapters",
            "set it to false",
        )
    sync = training.gradient_sync
    if sync.compression != "none" or sync.mode != "every-step":
        yield Problem(
            Reason.NOT_YET_SUPPORTED,
            "spec.training.gradientSync",
            "adapters are synchronized in every step and without compression",
            "remove it, or training.lora",
        )
