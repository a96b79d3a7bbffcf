"""Plan a run before it starts: from a job, or from a model and a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from llmtrain_core.api.defaults import MAX_NODES
from llmtrain_core.errors import PlanError
from llmtrain_core.layout import Layout
from llmtrain_core.placement.types import Placement
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.memory.checkpoint_size import Storage, storage
from llmtrain_core.plan.memory.training_memory import format_bytes
from llmtrain_core.plan.model.model_shape import ModelShape
from llmtrain_core.plan.network.communication import CommunicationVolumes, communication
from llmtrain_core.plan.network.link_speed import uplink_slowdowns
from llmtrain_core.plan.search.layouts import PlanOption, SearchResult, SearchSpace, search
from llmtrain_core.plan.search.sizing import (
    gpus_for_deadline,
    least_gpus,
    nearest_batch,
    nearest_smaller,
)
from llmtrain_core.plan.search.supported import accepts, space_of
from llmtrain_core.plan.time.goodput import DEFAULT_FAILURES, Failures, Goodput, goodput
from llmtrain_core.plan.time.predict import Prediction, predict, tokens_of
from llmtrain_core.plan.time.run_cost import RunCost, run_cost
from llmtrain_core.plan.training_setup import Precision, TrainingSetup
from llmtrain_core.topology.levels import Levels
from llmtrain_core.topology.links import GBYTE, Links
from llmtrain_core.validation.check import Job

MAX_TOKENS = 10**15
"""Maximum of `training.tokens` in the API."""
BATCH_TOKENS = 4 * 1024**2
"""Default batch in tokens: between 3.2 million (GPT-3) and 4 to 16 million (Llama 3)."""

REASONS = 4
"""Maximum number of rejection reasons in a message, most frequent first."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A model and a number of tokens; the plan selects layout and batch."""

    shape: ModelShape
    tokens: int
    global_batch: int | None = None
    precision: Precision = "bfloat16"
    days: float | None = None
    """Deadline in days. If set, the plan also selects the number of GPUs."""

    def __post_init__(self) -> None:
        """Raise PlanError for a run without a step, or with more tokens than the API allows."""
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise PlanError(
                f"{self.tokens:.3g} tokens are not between 1 and {MAX_TOKENS:.0e}",
                f"use {1 if self.tokens < 1 else MAX_TOKENS:g}",
            )
        length = self.shape.sequence_length
        if self.sequences < 1:
            raise PlanError(
                f"{self.tokens:,} tokens are less than one sequence of {length:,}",
                f"use at least {length} tokens, or shorter sequences",
            )
        if self.global_batch is not None and self.global_batch > self.sequences:
            raise PlanError(
                f"a batch of {self.global_batch:,} sequences is larger than the run:"
                f" {self.tokens:.3g} tokens are {self.sequences:,} sequences of {length:,}",
                f"use a batch of at most {self.sequences}, or more tokens",
            )

    @property
    def sequences(self) -> int:
        """Number of whole sequences of the run, the maximum batch."""
        return self.tokens // self.shape.sequence_length

    @property
    def space(self) -> SearchSpace:
        """Search space; it includes the batch if none is set."""
        if self.global_batch is not None:
            return SearchSpace()
        return SearchSpace(any_batch=True, largest_batch=self.sequences)

    @property
    def base(self) -> TrainingSetup:
        """Training setup before the layout is selected."""
        usual = max(1, min(BATCH_TOKENS // self.shape.sequence_length, self.sequences))
        batch = self.global_batch or usual
        return TrainingSetup(self.shape, Layout(), batch, precision=self.precision)


@dataclass(frozen=True, slots=True)
class Plan(Prediction):
    """Estimates of a run before it starts."""

    communication: CommunicationVolumes
    goodput: Goodput
    storage: Storage
    cost: RunCost | None
    """None if the run never finishes at this failure rate."""
    alternatives: tuple[PlanOption, ...]

    @property
    def days_with_failures(self) -> float | None:
        """Days until the run finishes; None if it never does."""
        return self.days / self.goodput.ratio if self.goodput.ratio else None


def plan(
    subject: Job | PlanRequest,
    hardware: Accelerator,
    gpus: int | None = None,
    placement: Placement | None = None,
    levels: Levels = (),
    price: float | None = None,
    failures: Failures = DEFAULT_FAILURES,
    links: Links | None = None,
) -> Plan:
    """Return the plan of a job, or of the fastest way to train a model on a number of GPUs.

    Without a placement, rank blocks fill servers in order and uplinks are not shared. `links` are
    those of a job's Fabric; what it does not name is that of the GPU's usual server. Raises
    PlanError with the nearest valid value if the plan is impossible.
    """
    _check_gpus(gpus, hardware)
    if isinstance(subject, Job):
        setup, tokens = _of_job(subject, gpus)
        hardware = hardware.in_nodes_of(subject.gpus_per_node, links)
        keep = subject.spec.checkpoint.keep if subject.spec.checkpoint else 2
        space = space_of(subject.spec)
        found = search(setup, hardware, setup.layout.world_size, space)
    else:
        setup, found = _for_request(subject, hardware, gpus)
        tokens, keep = subject.tokens, 2
    slowed = uplink_slowdowns(placement.crossings, levels) if placement else None
    predicted = predict(setup, hardware, tokens, slowed)
    lived = goodput(-(-predicted.gpus // int(hardware.node.value)), failures)
    seconds = predicted.seconds / lived.ratio if lived.ratio else None
    return Plan(
        setup=setup,
        tokens=tokens,
        memory=predicted.memory,
        hardware=hardware,
        time=predicted.time,
        collectives=predicted.collectives,
        assumptions=(*predicted.assumptions, *_assumptions(hardware, found, price, failures)),
        communication=communication(setup),
        goodput=lived,
        storage=storage(setup, tokens, keep),
        cost=None if seconds is None else run_cost(hardware, predicted.gpus, seconds, price),
        alternatives=_others(subject, setup, found),
    )


def _check_gpus(gpus: int | None, hardware: Accelerator) -> None:
    most = MAX_NODES * int(hardware.node.value)
    if gpus is not None and not 1 <= gpus <= most:
        raise PlanError(
            f"{gpus} GPUs are not between 1 and {most}", f"use {1 if gpus < 1 else most}"
        )


def _of_job(job: Job, gpus: int | None) -> tuple[TrainingSetup, int]:
    setup = TrainingSetup.of(job)
    if gpus is not None and gpus != setup.layout.world_size:
        setup = _resized(setup, gpus)
    return setup, tokens_of(job, setup)


def _resized(setup: TrainingSetup, gpus: int) -> TrainingSetup:
    """Return the setup for another number of GPUs, by changing the data degree."""
    layout = setup.layout
    others = layout.world_size // layout.data
    if gpus % others:
        near = max(1, round(gpus / others)) * others
        raise PlanError(
            f"{gpus} GPUs are not a multiple of the layout's {others} (all degrees but data)",
            f"use {near}, or change spec.parallelism",
        )
    return replace(setup, layout=replace(layout, data=gpus // others))


def _for_request(
    request: PlanRequest, hardware: Accelerator, gpus: int | None
) -> tuple[TrainingSetup, SearchResult]:
    """Return the fastest setup. Raises PlanError if nothing fits."""
    base, space = request.base, request.space
    if request.days is not None and gpus is None:
        gpus, found = gpus_for_deadline(base, hardware, request.tokens, request.days, space)
    elif gpus is None:
        raise PlanError("neither GPUs nor a deadline are given", "use --gpus N or --days D")
    else:
        found = search(base, hardware, gpus, space)
    if found.best is None:
        raise _nothing_fits(request, hardware, gpus, found)
    return found.best.setup, found


def _nothing_fits(
    request: PlanRequest, hardware: Accelerator, gpus: int, found: SearchResult
) -> PlanError:
    """Return the error with the limiting reasons and the remedy."""
    base, space = request.base, request.space
    if found.nearest is None:
        reasons = [*found.rejected][:REASONS] or ["no layout divides the model"]
        batch = nearest_batch(base, hardware, gpus, request.sequences)
        fewer = nearest_smaller(base, hardware, gpus, space)
        remedies = [f"use a batch of {batch}"] if batch else []
        remedies += [f"use {fewer} GPUs"] if fewer else []
        return PlanError(
            f"no layout of {gpus} GPUs can run this: " + "; ".join(reasons),
            " or ".join(remedies) or "use a larger GPU",
        )
    enough = least_gpus(base, hardware, gpus, space)
    remedy = f"use at least {enough} {hardware.name}" if enough else "use a larger GPU"
    near = found.nearest
    return PlanError(
        f"nothing fits {hardware.name}'s {format_bytes(near.memory.capacity)}: the smallest layout"
        f" of {gpus} GPUs, {near.setup.layout} with {near.setup.checkpointing} recomputation, needs"
        f" {format_bytes(near.memory.total)}",
        remedy,
    )


def _others(
    subject: Job | PlanRequest, setup: TrainingSetup, found: SearchResult, limit: int = 6
) -> tuple[PlanOption, ...]:
    """Return the best other layouts; for a job, only those that validation accepts."""
    others = (c for c in found.pareto if c.setup != setup)
    if isinstance(subject, Job):
        others = (c for c in others if accepts(subject, c.setup))
    return tuple(islice(others, limit))


def _assumptions(
    hardware: Accelerator, found: SearchResult, price: float | None, failures: Failures
) -> Iterator[str]:
    if price is None:
        yield f"price: {hardware.price.value:g} USD per GPU hour, {hardware.price.source}"
    for link, what in ((hardware.nic, "to other nodes"), (hardware.link, "in its NVLink domain")):
        if link.basis == "asked":
            yield f"{link.value / GBYTE:.4g} GB/s per GPU {what}: {link.source}"
    yield (
        f"failures: {failures.per_node_day:g} per node and day; a save stops training for"
        f" {failures.save_seconds:g} s, a restart takes {failures.restart_seconds:g} s"
    )
    for reason, count in [*found.rejected.items()][:REASONS]:
        yield f"{count} layouts were rejected for this or a similar reason: {reason}"
