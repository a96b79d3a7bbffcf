"""What the plan says of a job, on the GPUs that it may use or sits on. Pure.

Which GPU that is comes from the labels of nodes, and from nothing else: where they do not tell,
the plan says so, and nobody is refused for its memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.api.status import PlanStatus
from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.document import outline_to_wire, prediction_to_wire
from llmtrain_core.placement import Request, eligible
from llmtrain_core.plan.hardware import PRODUCT_LABELS, Accelerator, accelerator_of
from llmtrain_core.plan.memory.gpu_memory import (
    WHOLE_GPUS,
    gpu_product_labels,
    min_gpu_memory,
    nodes_by_gpu_memory,
)
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.network.communication import Group
from llmtrain_core.plan.network.link_speed import uplink_shares
from llmtrain_core.plan.search.fix_hint import too_large_message
from llmtrain_core.plan.time.predict import outline, predict, tokens_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_core.topology.levels import NODE, Levels
from llmtrain_core.validation.check import Job

PASSING_TAINTS = "node.kubernetes.io/"
"""Taints by which the cluster shows a node's state: they come and go by themselves."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The plan of one job, and whether any GPU could hold it."""

    plan: Mapping[str, Any] | None = None
    """`status.plan` without what is measured; None for a job that cannot be planned."""
    too_large: str | None = None
    """Why no GPU that the job could use is large enough: field, figures and remedy."""
    settled: bool = True
    """False where a node that comes, or another label, may change the answer for the better."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a job sits: its nodes, and what its groups cross."""

    nodes: Sequence[Node]
    crossings: Mapping[str, Mapping[str, int]]
    levels: Levels

    @classmethod
    def of(cls, placement: Mapping[str, Any], nodes: Sequence[Node], levels: Levels) -> Seat:
        """Read a stored placement."""
        used = placement.get("levels") or ()
        return cls(nodes, {use["level"]: use.get("crossings") or {} for use in used}, levels)


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The GPUs of some nodes."""

    known: tuple[Accelerator, ...]
    """From the one with least memory to the one with most."""
    strangers: int
    """Nodes whose GPU is not known."""


def assess(job: Job, nodes: Iterable[Node], seat: Seat | None) -> Assessment:
    """Return what the plan says; `nodes` are the cluster's, which count until the job sits."""
    try:
        setup = TrainingSetup.of(job)
        if seat is not None:
            return _placed(job, setup, seat)
        return _waiting(job, setup, usable(job, nodes))
    except PlanError:
        return Assessment()


def usable(job: Job, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that the job could ever use: what passes by itself is overlooked."""
    well = {
        node.name: replace(
            node,
            ready=True,
            cordoned=False,
            taints=tuple(t for t in node.taints if not t.key.startswith(PASSING_TAINTS)),
        )
        for node in nodes
    }
    names = eligible(Request.of(job), Snapshot((NODE,), tuple(well.values())))
    return [well[name] for name in sorted(names)]


def _waiting(job: Job, setup: TrainingSetup, nodes: Sequence[Node]) -> Assessment:
    kinds = _kinds(job, nodes)
    if not kinds.known:
        return Assessment(_outlined(job, setup, _unknown(job)), settled=False)
    largest = kinds.known[-1]
    capacity = int(largest.memory.value)
    needed = memory(setup, capacity)
    notes = [_several("the job could use", kinds.known, f"{largest.name}, the largest")]
    if kinds.strangers:
        notes.append(f"{kinds.strangers} of the nodes that the job could use name no known GPU")
    sizes, least = nodes_by_gpu_memory(nodes), min_gpu_memory(job)
    if kinds.strangers or capacity >= least:
        small = sum(len(names) for size, names in sizes.items() if size < least)
        notes.append(f"{small} of them have too little memory: left out" if small else "")
        return Assessment(_predicted(job, setup, largest, None, notes))
    plan = _predicted(job, setup, largest, None, notes)
    several = len(kinds.known) > 1
    gpu = f"the largest that it could use, {largest.name}," if several else largest.name
    text = too_large_message(job, needed, gpu, capacity)
    advice = f'; annotate the job with {ALLOW_OVER_MEMORY}="true" to run it all the same'
    return Assessment(plan, clean_text(text + advice), settled=False)


def _placed(job: Job, setup: TrainingSetup, seat: Seat) -> Assessment:
    kinds = _kinds(job, seat.nodes)
    if not kinds.known:
        return Assessment(_outlined(job, setup, _unknown(job)))
    slowest = min(kinds.known, key=lambda row: (row.peak("bfloat16"), row.memory.value))
    notes = [_several("the job sits on", kinds.known, f"{slowest.name}, the slowest")]
    if kinds.strangers:
        notes.append(f"{kinds.strangers} of its nodes name no known GPU")
    slowed = uplink_shares(seat.crossings, seat.levels)
    tightest = kinds.known[0]
    if tightest.memory.value < min_gpu_memory(job):
        notes.append(f"it needs more memory than its {tightest.name} have")
    return Assessment(_predicted(job, setup, slowest, slowed, notes))


def _kinds(job: Job, nodes: Iterable[Node]) -> _Kinds:
    if job.spec.workers.gpu_resource not in WHOLE_GPUS:
        return _Kinds((), len(list(nodes)))
    products = Counter(gpu_product_labels(node) for node in nodes)
    known, strangers = {}, 0
    for product, count in products.items():
        row = accelerator_of(dict(product))
        if row is None:
            strangers += count
        else:
            known[row.name] = row
    ordered = sorted(known.values(), key=lambda row: (row.memory.value, row.name))
    return _Kinds(tuple(ordered), strangers)


def _several(who: str, rows: Sequence[Accelerator], chosen: str) -> str:
    if len(rows) == 1:
        return ""
    return f"{who} {', '.join(row.name for row in rows)}: planned for {chosen}"


def _unknown(job: Job) -> str:
    resource = job.spec.workers.gpu_resource
    if resource not in WHOLE_GPUS:
        return f"{resource} is not a whole GPU: no times, and no verdict on memory"
    labels = " or ".join(PRODUCT_LABELS)
    return (
        f"no node for the job names a known GPU in its label {labels}: no times, and no verdict on"
        " memory"
    )


def _outlined(job: Job, setup: TrainingSetup, note: str) -> dict[str, Any]:
    known = outline(setup, tokens_of(job, setup))
    wire = outline_to_wire(known)
    wire["memory"] |= {"totalBytes": known.memory.total}
    del wire["memory"]["fits"]
    return _status(job, known.tokens, wire, [note])


def _predicted(
    job: Job,
    setup: TrainingSetup,
    hardware: Accelerator,
    slowed: Mapping[Group, float] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    hardware = hardware.in_nodes_of(job.gpus_per_node)
    found = predict(setup, hardware, tokens_of(job, setup), slowed)
    wire = prediction_to_wire(found)
    wire["memory"] |= {"totalBytes": found.memory.total, "capacityBytes": found.memory.capacity}
    wire |= {"hardware": hardware.name, "totalSeconds": found.seconds}
    return _status(job, found.tokens, wire, notes)


def _status(job: Job, tokens: int, wire: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return a plan as the status holds it: bounded, and with the digits that mean something."""
    if job.spec.workers.command is not None:
        notes = [*notes, "workers.command is set: planned as if llmtrain's own trainer ran"]
    said = clean_text("; ".join(note for note in notes if note))
    wire |= {"tokens": tokens, "totalFlops": float(wire["totalFlops"])}
    wire |= {"note": said} if said else {}
    return PlanStatus.from_wire(_rounded(wire)).to_wire()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value
