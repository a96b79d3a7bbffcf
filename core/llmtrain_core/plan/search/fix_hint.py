"""Find the smallest change that makes a job fit into GPU memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.plan.memory.training_memory import Memory, format_bytes, memory
from llmtrain_core.plan.search.supported import accepts
from llmtrain_core.plan.training_setup import Checkpointing, Precision, TrainingSetup
from llmtrain_core.validation.check import Job

_SHARDED_PARTS = frozenset({"weights", "gradients", "optimizer", "gathered"})
"""Parts that depend on the layout; the others depend on the micro-batch."""
_MARGINS = frozenset({"runtime", "fragmentation"})
GPUS_PER_SERVER = 8
"""GPUs per server, if the job has smaller servers and no layout fits."""
MAX_GPU_FACTOR = 4096
"""Maximum factor by which a hint may increase the number of GPUs."""


def too_large_message(job: Job, needed: Memory, gpu: str, capacity: int) -> str:
    """Return the message for a job that does not fit: need, largest part and fix hint."""
    parts = [part for part in needed.parts if part not in _MARGINS]
    part = max(parts, key=lambda name: needed.parts[name])
    field = "spec.parallelism" if part in _SHARDED_PARTS else "spec.training.microBatchSize"
    return (
        f"{field}: {job.layout} needs at least {format_bytes(needed.least)} of a GPU's memory,"
        f" margins not counted; {gpu} has {format_bytes(capacity)}; the largest part is {part},"
        f" {format_bytes(needed.parts[part])}; {fix_hint(job, TrainingSetup.of(job), capacity)}"
    )


def fix_hint(job: Job, setup: TrainingSetup, capacity: int) -> str:
    """Return the fewest changes to the job so that `setup` fits into `capacity` bytes."""
    found = nearest_fit(job, setup, capacity)
    if found is not None:
        return "set " + ", ".join(_changes(setup, found))
    if job.gpus_per_node < GPUS_PER_SERVER:  # a tensor group cannot leave its node
        found = nearest_fit(_on_full_servers(job), setup, capacity)
    if found is None:
        return f"no layout of up to {MAX_GPU_FACTOR} times the GPUs would fit: use larger ones"
    return f"set workers.gpusPerNode to {GPUS_PER_SERVER}, " + ", ".join(_changes(setup, found))


def _on_full_servers(job: Job) -> Job:
    workers = job.spec.workers.model_copy(update={"gpus_per_node": GPUS_PER_SERVER})
    return replace(job, spec=job.spec.model_copy(update={"workers": workers}))


def nearest_fit(job: Job, setup: TrainingSetup, capacity: int) -> TrainingSetup | None:
    """Return the setup that fits, with margins, and differs least; None if none does.

    Minimizes the number of GPUs, then the number of changes. Only setups that validation accepts.
    """
    options = sorted(_options(job, setup), key=lambda option: _distance(setup, option))
    return next((o for o in options if memory(o, capacity).fits and accepts(job, o)), None)


def _options(job: Job, setup: TrainingSetup) -> Iterator[TrainingSetup]:
    checkpointings: list[Checkpointing] = [*dict.fromkeys((setup.checkpointing, "full"))]
    micro_batches = [setup.micro_batch, *_halves(setup.micro_batch)]
    precisions: list[Precision] = [*dict.fromkeys((setup.precision, "bfloat16"))]
    for layout in _layouts(job, setup.layout):
        for checkpointing, micro, precision in product(checkpointings, micro_batches, precisions):
            try:
                yield replace(
                    setup,
                    layout=layout,
                    checkpointing=checkpointing,
                    micro_batch=micro,
                    precision=precision,
                )
            except PlanError:
                continue


def _layouts(job: Job, layout: Layout) -> Iterator[Layout]:
    """Yield layouts with more tensor, pipeline or data ranks, on whole nodes."""
    gpus, per_node = layout.world_size, job.gpus_per_node
    times = [2**k for k in range(MAX_GPU_FACTOR.bit_length())]
    for wider, deeper, more in product((1, 2, 4, 8), (1, 2, 4, 8), times):
        tensor, pipeline = layout.tensor * wider, layout.pipeline * deeper
        inner = tensor * pipeline * layout.context * layout.replicate
        if per_node % tensor == 0 and gpus * more % inner == 0:
            yield replace(layout, tensor=tensor, pipeline=pipeline, data=gpus * more // inner)


def _halves(number: int) -> Iterator[int]:
    while number % 2 == 0:
        number //= 2
        yield number


def _distance(before: TrainingSetup, after: TrainingSetup) -> tuple[int, int, int]:
    return after.layout.world_size, len(_changes(before, after)), after.layout.pipeline


def _changes(before: TrainingSetup, after: TrainingSetup) -> list[str]:
    """Return the fields of the job in which two setups differ, with the new values."""
    old, new = before.layout, after.layout
    pairs = (
        ("training.activationCheckpointing", before.checkpointing, after.checkpointing),
        ("training.microBatchSize", before.micro_batch, after.micro_batch),
        ("training.precision", before.precision, after.precision),
        ("parallelism.tensor", old.tensor, new.tensor),
        ("parallelism.pipeline", old.pipeline, new.pipeline),
        ("parallelism.data", old.data, new.data),
    )
    said = [f"{field} to {value}" for field, was, value in pairs if was != value]
    if new.world_size != old.world_size:
        said.append(f"workers.nodes for {new.world_size} GPUs")
    return said
