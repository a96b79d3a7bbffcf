"""Search of layouts: the fastest that fits, the trade-off with memory, and why others are rejected.

The search is exhaustive over tensor and context degrees that the model and the NVLink domain allow,
pipeline depths, shardings of the remaining ranks, micro-batches and schedules. Recomputation is the
least that fits, because less is always faster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import gcd

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.pipeline_schedules import ONE_STAGE, V_SHAPED, Schedule
from llmtrain_core.plan.constants import Constants, constants_of
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.memory.training_memory import Memory, memory
from llmtrain_core.plan.model.model_shape import ModelShape
from llmtrain_core.plan.time.step_time import StepTime, step_time
from llmtrain_core.plan.training_setup import Checkpointing, TrainingSetup

MAX_PIPELINE = 64
MAX_MICRO_BATCH = 64
MIN_CONTEXT_TOKENS = 1024
"""Minimum tokens of a sequence per context rank; with fewer, traffic outweighs computation."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Values that the search may select."""

    checkpointings: tuple[Checkpointing, ...] = ("none", "selective", "full")
    """From least to most recomputation."""
    schedules: tuple[Schedule, ...] = ("1F1B", "Interleaved1F1B", "ZBVZeroBubble")
    context: bool = True
    replicate: bool = True
    any_batch: bool = False
    """The global batch may be rounded to a multiple that the layout can split."""
    largest_batch: int | None = None
    """Maximum batch after rounding, in sequences: a run has at least one step."""


@dataclass(frozen=True, slots=True)
class PlanOption:
    """A training setup with its memory and step time."""

    setup: TrainingSetup
    memory: Memory
    time: StepTime

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all ranks."""
        return self.setup.tokens_per_step / self.time.seconds


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Result of a search."""

    best: PlanOption | None
    """The fastest option that fits; None if none does."""
    pareto: tuple[PlanOption, ...]
    """Options ordered by speed; each option needs less memory than the one before."""
    rejected: Mapping[str, int]
    """Number of rejected layouts by reason. Reasons that differ only in numbers are merged."""
    nearest: PlanOption | None
    """If nothing fits, the option that needs the least memory."""
    tried: int


def search(
    base: TrainingSetup,
    hardware: Accelerator,
    gpus: int,
    space: SearchSpace | None = None,
    constants: Constants | None = None,
    capacity: int | None = None,
) -> SearchResult:
    """Return the best options to run `base` on a number of GPUs.

    Layout, micro-batch, schedule and recomputation are chosen; everything else is taken from
    `base`. `capacity` is the memory of a GPU in bytes; default: that of `hardware`.
    """
    space, constants = space or SearchSpace(), constants or constants_of(hardware.name)
    capacity = capacity or int(hardware.memory.value)
    fitting: list[PlanOption] = []
    rejected = _Rejected()
    least: tuple[int, TrainingSetup, Memory] | None = None
    tried = 0
    for setup in _setups(base, hardware, gpus, space, rejected):
        tried += 1
        fits = False
        for checkpointing in space.checkpointings:
            option = replace(setup, checkpointing=checkpointing)
            needed = memory(option, capacity)
            if needed.fits:
                time = step_time(option, hardware, constants)
                fitting.append(PlanOption(option, needed, time))
                fits = True
                break
            if least is None or needed.total < least[0]:
                least = (needed.total, option, needed)
        if not fits:
            rejected.add(f"needs more than {hardware.name}'s {capacity / 1024**3:.0f} GiB")
    pareto = _pareto(fitting)
    nearest = None
    if not pareto and least is not None:
        nearest = PlanOption(least[1], least[2], step_time(least[1], hardware, constants))
    return SearchResult(pareto[0] if pareto else None, pareto, rejected.by_reason(), nearest, tried)


def any_layout_fits(
    base: TrainingSetup, hardware: Accelerator, gpus: int, space: SearchSpace
) -> bool:
    """Return True if any layout on `gpus` GPUs fits; step times are not computed."""
    capacity = int(hardware.memory.value)
    options = setups(base, hardware, gpus, space)
    return any(
        fits_with_recomputation(option, capacity, space.checkpointings) for option in options
    )


def fits_with_recomputation(
    setup: TrainingSetup, capacity: int, checkpointings: tuple[Checkpointing, ...]
) -> bool:
    """Return True if the setup fits with any recomputation; the most is tried first."""
    return any(
        memory(replace(setup, checkpointing=kind), capacity).fits
        for kind in reversed(checkpointings)
    )


def setups(
    base: TrainingSetup, hardware: Accelerator, gpus: int, space: SearchSpace
) -> Iterator[TrainingSetup]:
    """Return all setups of `base` on `gpus` GPUs, without a choice of recomputation."""
    return _setups(base, hardware, gpus, space, _Rejected())


def _pareto(options: list[PlanOption]) -> tuple[PlanOption, ...]:
    ordered = sorted(
        options,
        key=lambda c: (
            -c.tokens_per_second,
            c.memory.total,
            str(c.setup.layout),
            c.setup.micro_batch,
            c.setup.schedule,
        ),
    )
    kept: list[PlanOption] = []
    for option in ordered:
        if not kept or option.memory.total < 0.98 * kept[-1].memory.total:
            kept.append(option)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class _Rejected:
    """Rejection reasons, counted by their text without numbers."""

    counts: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    """First full text of each kind."""

    def add(self, reason: str) -> None:
        kind = _NUMBERS.sub("N", reason)
        self.said.setdefault(kind, reason)
        self.counts[kind] += 1

    def by_reason(self) -> dict[str, int]:
        return {self.said[kind]: count for kind, count in self.counts.most_common()}


_NUMBERS = re.compile(r"[0-9]+")


def _setups(
    base: TrainingSetup, hardware: Accelerator, gpus: int, space: SearchSpace, rejected: _Rejected
) -> Iterator[TrainingSetup]:
    for layout in _layouts(base, hardware, gpus, space, rejected):
        for schedule, chunks in _schedules(base, layout, space):
            for micro in _micro_batches(base, layout, space):
                batch = _batch(base, layout, micro, space)
                if space.largest_batch is not None and batch > space.largest_batch:
                    rejected.add(
                        f"needs a batch of {batch} sequences, the run has {space.largest_batch}"
                    )
                    continue
                try:
                    yield replace(
                        base,
                        layout=layout,
                        schedule=schedule,
                        chunks=chunks,
                        micro_batch=micro,
                        global_batch=batch,
                        recomputed_share=None,
                    )
                except PlanError as error:
                    rejected.add(error.message)


def _layouts(
    base: TrainingSetup, hardware: Accelerator, gpus: int, space: SearchSpace, rejected: _Rejected
) -> Iterator[Layout]:
    shape, domain = base.shape, int(hardware.domain.value)
    for tensor in _divisors(gpus, min(domain, 16)):
        if shape.kv_heads % tensor or shape.heads % tensor or shape.ffn_size % tensor:
            rejected.add(f"tensor {tensor} does not divide the model's heads or feed-forward width")
            continue
        if domain % tensor:
            rejected.add(f"tensor {tensor} does not divide the {domain} GPUs that NVLink joins")
            continue
        for pipeline in _divisors(gpus // tensor, min(MAX_PIPELINE, shape.layers)):
            for context in _contexts(base, gpus // (tensor * pipeline), space):
                rest = gpus // (tensor * pipeline * context)
                for data in _shards(rest, tensor, domain, base, space):
                    for expert in _experts(shape, data * context):
                        yield Layout(
                            tensor=tensor,
                            pipeline=pipeline,
                            context=context,
                            data=data,
                            replicate=rest // data,
                            expert=expert,
                        )


def _experts(shape: ModelShape, ranks: int) -> list[int]:
    """Return expert-parallel degrees: 1 and the largest common divisor."""
    return sorted({1, gcd(shape.experts, ranks)})


def _contexts(base: TrainingSetup, room: int, space: SearchSpace) -> list[int]:
    most = base.shape.sequence_length // MIN_CONTEXT_TOKENS if space.context else 1
    found = [c for c in (1, 2, 4, 8, 16, 32) if c <= max(1, most) and room % c == 0]
    return [c for c in found if c == 1 or base.shape.sequence_length % (2 * c) == 0]


def _shards(
    rest: int, tensor: int, domain: int, base: TrainingSetup, space: SearchSpace
) -> list[int]:
    """Return sizes of the shard group: all data ranks, one NVLink domain, or eight domains."""
    if base.sharding != "fsdp2" or not space.replicate:
        return [rest]
    near = max(1, domain // tensor)
    return [rest, *(size for size in (near, 8 * near) if size < rest and rest % size == 0)]


def _schedules(
    base: TrainingSetup, layout: Layout, space: SearchSpace
) -> Iterator[tuple[Schedule, int]]:
    """Yield schedules with the smallest and the largest even number of chunks."""
    per_rank = base.shape.layers // layout.pipeline
    if layout.pipeline == 1:
        yield "1F1B", 1
        return
    for schedule in space.schedules:
        if schedule in ONE_STAGE:
            yield schedule, 1
        elif schedule in V_SHAPED:
            if per_rank >= 2:
                yield schedule, 2
        else:
            even = [v for v in range(2, per_rank + 1) if per_rank % v == 0]
            yield from ((schedule, v) for v in dict.fromkeys((*even[:1], *even[-1:])))


def _micro_batches(base: TrainingSetup, layout: Layout, space: SearchSpace) -> list[int]:
    """Return divisors of a data rank's batch that leave a micro-batch for each stage."""
    replicas = layout.data * layout.replicate
    most = min(MAX_MICRO_BATCH, max(1, base.global_batch // (replicas * layout.pipeline)))
    if space.any_batch or base.global_batch % replicas:
        return [2**k for k in range(most.bit_length()) if 2**k <= most]
    return _divisors(base.global_batch // replicas, most)


def _batch(base: TrainingSetup, layout: Layout, micro: int, space: SearchSpace) -> int:
    """Return the batch of the base, or the nearest batch that the layout can split."""
    if not space.any_batch:
        return base.global_batch
    share = layout.data * layout.replicate * micro
    times = max(layout.pipeline, round(base.global_batch / share))
    return share * times


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]
