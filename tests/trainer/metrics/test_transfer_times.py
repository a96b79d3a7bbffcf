"""The transfer times of all groups: from real ranks to rank 0, and compared by its launcher."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from llmtrain_core.network.transfer_times import BLOCK_SAMPLES, LEAST_BLOCKS, SampleBlock
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.runtime.reports import GroupTransfer, TransferReport

KEYS = {("dp", 0), ("dp", 1), ("tp", 0), ("tp", 2)}


@pytest.mark.torch
def test_rank_0_gets_the_median_of_each_group(
    run_trainers: Callable[..., list[Any]], job_spec: Callable[..., dict[str, Any]], shards: Any
) -> None:
    """Two nodes of two ranks. Each rank returns what it has measured of its own groups."""

    def body(trainer: Any) -> Any:
        from llmtrain_trainer.metrics.collectives import CollectiveMeter
        from llmtrain_trainer.metrics.network_probe import probe_groups
        from llmtrain_trainer.runtime.reports import TransferReport

        trainer.take_step()
        own: dict[str, list[float]] = {}
        meter = CollectiveMeter(trainer.grid.labels, "cpu")
        for _ in range(BLOCK_SAMPLES):
            report = trainer.take_step(sampled=True)
            spent: dict[str, float] = {}
            for sample in report.collectives:
                tensors = sample.without_scalars()
                if tensors.waits:
                    transfer = sum(tensors.seconds) - sum(tensors.waits)
                    spent[sample.group] = spent.get(sample.group, 0.0) + transfer
            for label, seconds in spent.items():
                own.setdefault(label, []).append(seconds)
            with meter:
                trainer.transfer_times.add_step(report.collectives)
        for _ in range(BLOCK_SAMPLES):
            trainer.transfer_times.add_probe(probe_groups(trainer.grid, trainer.device))
        sent = [each for each in trainer.sent if isinstance(each, TransferReport)]
        calls = [(each.op, each.nbytes) for each in meter.samples()]
        return {label: median(values) for label, values in own.items()}, sent, calls

    results = run_trainers(job_spec(tensor=2, data=2, gpus_per_node=2), shards, body)
    assert [len(sent) for _, sent, _ in results] == [2, 0, 0, 0]
    collectives, probe = results[0][1]
    assert (collectives.kind, probe.kind) == ("collectives", "probe")
    for report in (collectives, probe):
        assert {each.group for each in report.groups} == KEYS
        assert all(each.block.seconds > 0 and each.block.error > 0 for each in report.groups)
    for each in collectives.groups:
        label, first = each.group
        assert each.block.seconds == pytest.approx(results[first][0][label])
    # one all-reduce of two numbers for each group, in ten sampled steps
    assert [calls for _, _, calls in results] == [[("all_reduce", 16 * len(KEYS))]] * 4


@pytest.mark.torch
def test_a_job_on_one_node_sends_nothing(
    run_trainers: Callable[..., list[Any]], job_spec: Callable[..., dict[str, Any]], shards: Any
) -> None:
    def body(trainer: Any) -> Any:
        from llmtrain_trainer.metrics.collectives import CollectiveMeter

        with CollectiveMeter(trainer.grid.labels, "cpu") as meter:
            for _ in range(BLOCK_SAMPLES):
                trainer.transfer_times.add_step(())
        return [*meter.samples()], trainer.sent

    assert run_trainers(job_spec(tensor=2), shards, body) == [([], [])] * 2


def block(seconds: float, kind: Any = "collectives") -> TransferReport:
    groups = [
        GroupTransfer(("dp", rank), SampleBlock(seconds if rank else 1.0, 0.02)) for rank in (0, 1)
    ]
    return TransferReport(kind, tuple(groups))


@pytest.mark.unit
def test_the_status_has_the_slowdown_of_each_group() -> None:
    tracker = StatusTracker((0, 1), attempt=0)
    for number in range(1, LEAST_BLOCKS + 3):
        assert (tracker.status.transfers is None) == (number <= LEAST_BLOCKS)
        tracker.on_report(0, block(1.0 if number <= LEAST_BLOCKS else 3.0))
    expected = {"group": "dp", "ranks": [0, 1], "ratio": [1.0, 3.0]}
    found = tracker.status.document()["transfers"]
    assert found["block"] == LEAST_BLOCKS + 2
    (entry,) = found["groups"]
    assert {key: entry[key] for key in expected} == expected
    assert "transfers" not in tracker.status.result()


@pytest.mark.unit
def test_a_restart_in_place_keeps_the_usual_times() -> None:
    from datetime import UTC, datetime

    from llmtrain_core.api.failure_info import FailureInfo

    tracker = StatusTracker((0, 1), attempt=0)
    for _ in range(LEAST_BLOCKS):
        tracker.on_report(0, block(1.0))
    tracker.on_restart(FailureInfo("Signal", "", exit_code=137), datetime.now(UTC))
    for _ in range(2):
        tracker.on_report(0, block(2.0))
    assert tracker.status.document()["transfers"]["groups"][0]["ratio"] == [1.0, 2.0]
