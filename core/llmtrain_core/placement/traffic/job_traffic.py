"""Compute the traffic of a job's groups: the plan's payloads as bytes per edge of a ring.

A ring all-gather or reduce-scatter of a payload S sends (n - 1) / n S over every edge, an
all-reduce twice that (Patarasuk and Yuan, 2009; nccl-tests, doc/PERFORMANCE.md). A pipeline sends
its payload over the boundary. Volumes are those of the busiest pipeline rank. Where copies are
summed inside racks first, one ring stands for both levels: its edges carry what the larger needs,
and what leaves a rack leaves it on as many interfaces as copies share the rack.

Experts are sharded over neighbours in the FSDP ring, so their traffic counts on its edges. An all-
to-all of a payload S over e ranks in a row puts g (e - g) / e S on the edge behind the g-th of
them: (e^2 - 1) / (6 e) S on the average edge of the ring, of which one in e joins two groups and
carries nothing. It is not hidden. Ranks with the same experts are e ranks apart: their e rings
cross every edge.

The exposed share comes from the plan's model of a step: seconds that no computation hides, over all
seconds of that kind. The model assumes uplinks without oversubscription. More is exposed behind
tight uplinks, so the share is at least `LEAST_EXPOSED`.
"""

from __future__ import annotations

from llmtrain_core.errors import PlanError
from llmtrain_core.layout import DIMENSION_LABELS, Dimension
from llmtrain_core.pipeline_schedules import V_SHAPED
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.hardware import CATALOGUE, Accelerator
from llmtrain_core.plan.network.communication import (
    CommunicationVolumes,
    communication,
    stage_communication,
    tied_bytes,
    wire_bytes,
)
from llmtrain_core.plan.network.link_speed import CollectiveCostModel
from llmtrain_core.plan.time.step_time import replica_sync_seconds, step_time
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job

LEAST_EXPOSED = 0.25
USUAL_GPU = CATALOGUE["H100"]
"""The GPU that determines what is hidden if the GPU of the nodes is not known."""

_RINGS: tuple[Dimension, ...] = ("tensor", "context", "data", "replicate")


def volumes_of_job(job: Job, hardware: Accelerator | None = None) -> TrafficVolumes | None:
    """Return the traffic of a job; None for a third-party trainer, whose model is not known."""
    try:
        setup = TrainingSetup.of(job)
    except PlanError:
        return None
    return volumes_of(setup, hardware or USUAL_GPU)


def planned_step_seconds(job: Job, hardware: Accelerator | None = None) -> float | None:
    """Return the time of a step without shared uplinks; None if it cannot be planned."""
    gpu = (hardware or USUAL_GPU).in_nodes_of(job.gpus_per_node)
    try:
        return step_time(TrainingSetup.of(job), gpu, constants_of(gpu.name)).seconds
    except PlanError:
        return None


def volumes_of(setup: TrainingSetup, hardware: Accelerator = USUAL_GPU) -> TrafficVolumes:
    """Return bytes per edge, direction and step of every kind with more than one rank."""
    payloads = communication(setup)
    found: dict[Dimension, GroupTraffic] = {}
    for kind in _RINGS:
        ranks = setup.layout.group(DIMENSION_LABELS[kind]).size
        moved = _edge_bytes(setup, payloads, kind)
        routed = _routed(setup, payloads) if kind == "data" else 0
        if ranks > 1 and moved:
            exposed = _exposed(setup, payloads, hardware, kind)
            if routed:
                exposed = (moved * exposed + routed) / (moved + routed)
            found[kind] = GroupTraffic(moved + routed, exposed)
    boundary, wrap = _pipeline(setup)
    if boundary:
        found["pipeline"] = GroupTraffic(boundary)
    return TrafficVolumes(found, wrap)


def _edge_bytes(setup: TrainingSetup, payloads: CommunicationVolumes, kind: Dimension) -> int:
    """Return the bytes on one edge of a group's ring."""
    group = DIMENSION_LABELS[kind]
    moved = wire_bytes(setup, payloads, group)
    if group == "dp":
        moved += wire_bytes(setup, payloads, "edp") * setup.layout.expert
    if group == "rep":
        near = wire_bytes(setup, payloads, "rep-near")
        far = wire_bytes(setup, payloads, "rep-far") * setup.sync.replicas_per_rack
        moved += max(near, far)
    return int(moved)


def _routed(setup: TrainingSetup, payloads: CommunicationVolumes) -> int:
    """Return bytes between experts' ranks on the average edge of the ring of data ranks."""
    sent, ranks = payloads.get(("ep", "all_to_all")), setup.layout.expert
    return sent.nbytes * (ranks**2 - 1) // (6 * ranks) if sent else 0


def _pipeline(setup: TrainingSetup) -> tuple[int, int]:
    """Return bytes over a boundary, and between the last and the first rank.

    Looped, rank 0 holds v chunks: it sends v hidden states to rank 1, and v - 1 gradients back to
    the last rank. In V shape or with one chunk, all that it sends goes to rank 1. A tied embedding
    goes to the last rank.
    """
    sent = stage_communication(setup, 0).get(("pp", "send"))
    if sent is None:
        return 0, 0
    chunks, tied = setup.chunks, tied_bytes(setup)
    hidden = sent.nbytes - tied
    if chunks == 1 or setup.schedule in V_SHAPED:
        return hidden, tied
    each = hidden // (2 * chunks - 1)
    return each * chunks, each * (chunks - 1) + tied


def _exposed(
    setup: TrainingSetup, payloads: CommunicationVolumes, hardware: Accelerator, kind: Dimension
) -> float:
    """Return the exposed share of data and replicate traffic; the others stall the step in full."""
    if kind not in {"data", "replicate"}:
        return 1.0
    group = DIMENSION_LABELS[kind]
    constants = constants_of(hardware.name)
    try:
        shown = step_time(setup, hardware, constants).exposed.get(group, 0.0)
    except PlanError:  # no matrix units of that precision: nothing is known of what hides
        return 1.0
    network = CollectiveCostModel(
        hardware,
        setup.layout,
        constants.link_efficiency,
        constants.nic_efficiency,
        sync=setup.sync,
    )
    spent = network.call_seconds(payloads)
    if group == "rep":
        whole = replica_sync_seconds(spent)
    else:
        whole = sum(seconds for (name, _), seconds in spent.items() if name == group)
    return min(1.0, max(LEAST_EXPOSED, shown / whole)) if whole else 1.0
