"""What is wrong with a job that no GPU can hold, and the nearest job that one can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from llmtrain_core.api.check import Job
from llmtrain_core.layout import Layout
from llmtrain_core.plan.errors import PlanError
from llmtrain_core.plan.memory import Memory, binary, memory
from llmtrain_core.plan.recipe import Checkpointing, Precision, Recipe
from llmtrain_core.plan.supported import accepts

_STATE = frozenset({"weights", "gradients", "optimizer", "gathered"})
"""Parts that more ranks share; the others follow from the micro-batch."""
_MARGINS = frozenset({"runtime", "fragmentation"})
MOST_MORE = 64
"""A remedy that takes more than so many times the GPUs is none."""


def never_fits(needed: Memory, capacity: int) -> bool:
    """Whether a GPU is too small even without the margins."""
    return needed.least > capacity


def too_large(job: Job, needed: Memory, gpu: str, capacity: int) -> str:
    """Say by how much a job outgrows a GPU, what takes the room, and what would help."""
    part = max(needed.parts.keys() - _MARGINS, key=lambda name: needed.parts[name])
    field = "spec.parallelism" if part in _STATE else "spec.training.microBatchSize"
    recipe = Recipe.of(job)
    found = nearest_fit(job, recipe, capacity)
    remedy = (
        "set " + ", ".join(_changes(recipe, found))
        if found
        else f"no layout of up to {MOST_MORE} times the GPUs would fit: use larger ones"
    )
    return (
        f"{field}: {job.layout} needs at least {binary(needed.least)} of a GPU's memory, margins"
        f" not counted; {gpu} has {binary(capacity)}; the largest part is {part},"
        f" {binary(needed.parts[part])}; {remedy}"
    )


def nearest_fit(job: Job, recipe: Recipe, capacity: int) -> Recipe | None:
    """Return the recipe that fits, margins included, and differs the least; None where none does.

    On as few more GPUs as possible, then with the fewest changes. Only what the job would be
    accepted with.
    """
    options = sorted(_options(job, recipe), key=lambda option: _distance(recipe, option))
    return next((o for o in options if memory(o, capacity).fits and accepts(job, o)), None)


def _options(job: Job, recipe: Recipe) -> Iterator[Recipe]:
    checkpointings: list[Checkpointing] = [*dict.fromkeys((recipe.checkpointing, "full"))]
    micro_batches = [recipe.micro_batch, *_halves(recipe.micro_batch)]
    precisions: list[Precision] = [*dict.fromkeys((recipe.precision, "bfloat16"))]
    for layout in _layouts(job, recipe.layout):
        for checkpointing, micro, precision in product(checkpointings, micro_batches, precisions):
            try:
                yield replace(
                    recipe, layout=layout, checkpointing=checkpointing, micro_batch=micro,
                    precision=precision,
                )  # fmt: skip
            except PlanError:
                continue


def _layouts(job: Job, layout: Layout) -> Iterator[Layout]:
    """Return layouts with more tensor, pipeline or data ranks, on whole nodes."""
    gpus, per_node = layout.world_size, job.gpus_per_node
    for wider, deeper, more in product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, MOST_MORE)):
        tensor, pipeline = layout.tensor * wider, layout.pipeline * deeper
        inner = tensor * pipeline * layout.context * layout.replicate
        if per_node % tensor == 0 and gpus * more % inner == 0:
            yield replace(layout, tensor=tensor, pipeline=pipeline, data=gpus * more // inner)


def _halves(number: int) -> Iterator[int]:
    while number % 2 == 0:
        number //= 2
        yield number


def _distance(before: Recipe, after: Recipe) -> tuple[int, int, int]:
    return after.layout.world_size, len(_changes(before, after)), after.layout.pipeline


def _changes(before: Recipe, after: Recipe) -> list[str]:
    """Name the fields of the job in which two recipes differ, with the new values."""
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
