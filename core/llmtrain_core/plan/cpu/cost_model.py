"""CPU time and wall time of an optimizer step on a machine without GPUs.

The work of a rank in a step is counted exactly (`rank_work`). Each kind of work has one price in
CPU seconds, the same for all layouts and models, measured by a calibration (`fit`). The model is
linear, so each kind can be checked separately. On a CPU, operator dispatch and gloo messages cost
more than the arithmetic of a small model, and most kinds describe them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_core.errors import PlanError
from llmtrain_core.pipeline_schedules import FORWARD_AND_BACKWARD, ONE_STAGE, idle_units
from llmtrain_core.plan.model.parameters import PipelineStage
from llmtrain_core.plan.network.communication import (
    CommunicationVolumes,
    Operation,
    group_sizes,
    stage_communication,
)
from llmtrain_core.plan.time.step_time import between_bytes, layer_weights
from llmtrain_core.plan.training_setup import COMPUTE_BYTES, TrainingSetup

CALIBRATED_PRECISION = "float32"
"""Data type of the calibration."""

WorkAmounts = Mapping[str, float]
"""Amount of work by kind; absent kinds are 0."""

WORK_KINDS: Mapping[str, str] = {
    "steps": "steps: batch, learning rate, clipping",
    "updates": "layers updated: optimizer and clipping, by call",
    "parameters": "parameters updated, of a rank's shard",
    "passes": "micro-batches",
    "layers": "layers run for a micro-batch, both passes",
    "products": "FLOPs of products",
    "attention": "FLOPs of attention, the masked half not counted",
    "between": "bytes read and written between products, both passes",
    "logits": "values of the loss",
    "accumulated": "parameters whose gradient is added up, by micro-batch",
    "scatters": "FSDP units whose gradient is reduced",
    "exchanges": "FSDP units gathered or reduced among several ranks",
    "exchanged": "bytes of them, put in order before or after",
    "tensorLayers": "layers run for a micro-batch, with tensor parallelism",
    "tensorLosses": "micro-batches through the loss, sharded over the vocabulary",
    "tensorLogits": "values of the loss, sharded over the vocabulary",
    "stages": "micro-batches through a stage of a pipeline, its transfers included",
    "calls": "collectives, of any kind",
    "gatherHops": "messages of a ring all-gather",
    "scatterHops": "messages of a ring reduce-scatter",
    "reduceHops": "messages of a ring all-reduce",
    "bytes": "bytes that a rank sends",
}
"""Kinds of work, with their units."""

_HOPS: Mapping[Operation, tuple[str, int]] = {
    "all_gather": ("gatherHops", 1),
    "reduce_scatter": ("scatterHops", 1),
    "all_reduce": ("reduceHops", 2),
}
"""Kind of message and number of ring passes, by collective."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measured CPU seconds of an amount of work."""

    work: WorkAmounts
    seconds: float


@dataclass(frozen=True, slots=True)
class CpuCostModel:
    """Number of cores of a machine, and the price of each kind of work."""

    cores: int
    prices: Mapping[str, float]
    """CPU seconds per unit of every kind in `WORK_KINDS`."""

    def seconds(self, work: WorkAmounts) -> float:
        """Return the CPU seconds of an amount of work."""
        return sum(self.prices[kind] * amount for kind, amount in work.items())

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON of a calibration."""
        return {"cores": self.cores, "cpuSeconds": dict(self.prices)}

    @classmethod
    def from_wire(cls, document: Any) -> CpuCostModel:
        """Read the JSON of a calibration. Raises PlanError if it is not valid."""
        try:
            cores, prices = int(document["cores"]), document["cpuSeconds"]
            found = {kind: float(prices[kind]) for kind in WORK_KINDS}
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"not a calibration: {error!r}", "calibrate this machine again"
            ) from None
        if cores < 1 or not all(0 <= price < float("inf") for price in found.values()):
            raise PlanError("a calibration has a negative figure", "calibrate this machine again")
        return cls(cores, found)


@dataclass(frozen=True, slots=True)
class CpuStepTime:
    """Time of one step on a machine without GPUs."""

    cpu: tuple[float, ...]
    """CPU seconds of one rank of each pipeline stage."""
    cpu_seconds: float
    """CPU seconds of all ranks."""
    wall_seconds: float
    """Wall-clock time on an otherwise idle machine."""


def cpu_step_time(setup: TrainingSetup, cost_model: CpuCostModel) -> CpuStepTime:
    """Return the time of one step. Raises PlanError for features that are not calibrated.

    With more ranks than cores, the cores are always busy. Otherwise the slowest stage and the
    pipeline bubble determine the time.
    """
    layout = setup.layout
    cpu = tuple(cost_model.seconds(rank_work(setup, rank)) for rank in range(layout.pipeline))
    whole = sum(cpu) * (layout.world_size // layout.pipeline)
    idle = idle_units(setup.schedule, layout.pipeline, setup.micro_batches)
    stretch = 1 + idle / (FORWARD_AND_BACKWARD * setup.micro_batches)
    wall = max(max(cpu) * stretch, whole / min(cost_model.cores, layout.world_size))
    return CpuStepTime(cpu, whole, wall)


def rank_work(setup: TrainingSetup, rank: int) -> dict[str, float]:
    """Return the work of one rank of pipeline stage `rank` in a step."""
    _require_measured(setup)
    stage, volumes = setup.stages[rank], stage_communication(setup, rank)
    work = {**_compute(setup, stage), **_shards(setup, stage)}
    for (group, operation), calls in volumes.items():
        if operation in _HOPS:
            ranks = group_sizes(setup)[group]
            moved = collective_work(operation, ranks, calls.count, calls.nbytes)
            work = add_work(work, moved)
        if group == "dp":
            work = add_work(work, {"exchanged": calls.nbytes})
    layout, micro_batches = setup.layout, setup.micro_batches
    if layout.tensor > 1:
        work["tensorLayers"] = micro_batches * stage.layers
        work["tensorLosses"] = micro_batches * stage.predicts
        work["tensorLogits"] = work.pop("logits")
        work["between"] += _tensor_copies(volumes)
    if layout.pipeline > 1:
        work["stages"] = micro_batches
        work = add_work(work, {"bytes": _sent(volumes)})
    return work


def collective_work(operation: Operation, ranks: int, calls: float, nbytes: float) -> WorkAmounts:
    """Return the messages of `calls` collectives that carry `nbytes` together, on each rank."""
    kind, rounds = _HOPS[operation]
    hops = rounds * (ranks - 1)
    return {"calls": calls, kind: calls * hops, "bytes": nbytes * hops / ranks}


def add_work(*works: WorkAmounts) -> dict[str, float]:
    """Return the sum of amounts of work."""
    return {
        kind: sum(work.get(kind, 0) for work in works)
        for kind in WORK_KINDS
        if any(kind in work for work in works)
    }


def _compute(setup: TrainingSetup, stage: PipelineStage) -> dict[str, float]:
    """Return the work of the forward and backward passes, recomputation included."""
    shape, tensor, micro_batches = setup.shape, setup.layout.tensor, setup.micro_batches
    again = 1 + setup.recomputed / 3
    runs, tokens = micro_batches * stage.layers, setup.local_tokens
    each = 6 if shape.adapters is None else 4  # frozen weights have no gradient
    layer = each * tokens * sum(layer_weights(shape)) / tensor
    logits = micro_batches * stage.predicts * tokens * shape.vocab_size / tensor
    scores = 6 * tokens * shape.sequence_length * shape.query_width / tensor
    if setup.masks_pairs:
        scores *= 2  # the masked half is computed
    moved = 3 * tokens * between_bytes(shape, COMPUTE_BYTES[setup.precision]) / tensor
    return {
        "passes": micro_batches,
        "layers": again * runs,
        "products": again * runs * layer + each * logits * shape.hidden_size,
        "attention": again * runs * scores,
        "between": again * runs * moved,
        "logits": logits,
    }


def _shards(setup: TrainingSetup, stage: PipelineStage) -> dict[str, float]:
    """Return the work of FSDP and the optimizer, which one data rank does as well."""
    units = setup.units(stage)
    again = setup.micro_batches * units.layers if setup.layout.pipeline == 1 else 0
    gathers, scatters = units.count + again, units.learnt.count
    return {
        "steps": 1,
        "updates": units.layers,
        "parameters": units.learnt.sharded(setup.shard_ranks),
        "accumulated": setup.micro_batches * units.learnt.size,
        "scatters": scatters,
        "exchanges": gathers + scatters if setup.shard_ranks > 1 else 0,
    }


def _sent(volumes: CommunicationVolumes) -> float:
    """Bytes that a rank of a pipeline sends to its neighbours."""
    return sum(calls.nbytes for (_, operation), calls in volumes.items() if operation == "send")


def _tensor_copies(volumes: CommunicationVolumes) -> float:
    """Bytes read and written where hidden states are put in order before or after a collective."""
    return 2 * sum(
        calls.nbytes
        for (group, operation), calls in volumes.items()
        if group == "tp" and operation != "all_reduce"
    )


def _require_measured(setup: TrainingSetup) -> None:
    if setup.precision != CALIBRATED_PRECISION:
        raise PlanError(
            f"the time of {setup.precision} on a CPU is not calibrated",
            f"use {CALIBRATED_PRECISION}",
        )
    if setup.layout.context > 1 or setup.layout.replicate > 1:
        raise PlanError("context and replica ranks on a CPU are not calibrated", "use degree 1")
    if setup.shape.experts > 1:
        raise PlanError("experts on a CPU are not calibrated", "plan for a GPU with --gpu")
    if setup.schedule not in ONE_STAGE:
        raise PlanError(f"{setup.schedule} on a CPU is not calibrated", "use 1F1B or GPipe")
    if setup.checkpointing == "selective" or setup.kernels != "eager":
        raise PlanError(
            "selective recomputation and compilation on a CPU are not calibrated",
            "use full recomputation or none, and do not compile",
        )


SWEEPS = 20_000
"""Maximum number of rounds of coordinate descent; predictions converge much earlier."""


def fit(measured: Sequence[Measurement], cores: int) -> CpuCostModel:
    """Return the prices, none negative, with the least squared relative error.

    Coordinate descent on the normal equations: each price in turn is set to its optimum given the
    others (non-negative least squares is convex, so the order of descent does not matter).
    """
    rows = [
        [m.work.get(kind, 0) / m.seconds for kind in WORK_KINDS] for m in measured if m.seconds > 0
    ]
    scale = [max((row[k] for row in rows), default=0.0) or 1.0 for k in range(len(WORK_KINDS))]
    rows = [[value / s for value, s in zip(row, scale, strict=True)] for row in rows]
    columns = list(zip(*rows, strict=True))
    gram = [[sum(map(float.__mul__, a, b)) for b in columns] for a in columns]
    target = [sum(column) for column in columns]
    prices = [0.0] * len(WORK_KINDS)
    for _ in range(SWEEPS):
        if _sweep(gram, target, prices) < 1e-9:
            break
    return CpuCostModel(
        cores, {k: p / s for k, p, s in zip(WORK_KINDS, prices, scale, strict=True)}
    )


def _sweep(gram: list[list[float]], target: list[float], prices: list[float]) -> float:
    """Improve every price once, in place; return the largest change."""
    largest = 0.0
    for k, row in _determined(gram):
        better = prices[k] + (target[k] - sum(map(float.__mul__, row, prices))) / row[k]
        largest = max(largest, abs(max(0.0, better) - prices[k]))
        prices[k] = max(0.0, better)
    return largest


def _determined(gram: list[list[float]]) -> Iterator[tuple[int, list[float]]]:
    """Yield the rows of the kinds that occur in a measurement."""
    yield from ((k, row) for k, row in enumerate(gram) if row[k] > 0)
