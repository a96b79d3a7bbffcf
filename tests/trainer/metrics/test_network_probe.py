"""The network probe: its all-reduces between steps, which change nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch

SMALL, LARGE = 4096, 16 * 2**20


def test_the_network_probe_does_not_change_training(
    shards: Any,
    run_trainers: Callable[..., list[Any]],
    job_spec: Callable[..., dict[str, Any]],
    parameter_hash: Callable[[Any], str],
) -> None:
    def spec(**training: Any) -> dict[str, Any]:
        return job_spec(tensor=2, training={"steps": 4, **training})

    def work(plain: Any) -> Any:
        from llmtrain_trainer.job_spec import from_spec
        from llmtrain_trainer.runtime.reports import StepReport
        from llmtrain_trainer.training.trainer import Trainer

        probing = Trainer(
            from_spec("test", spec(collectiveProbe={"everySteps": 2})),
            plain.data,
            plain.device,
            (sent := []).append,
        )
        results = []
        for trainer, reports in ((plain, plain.sent), (probing, sent)):
            trainer.train()
            steps = [each for each in reports if isinstance(each, StepReport)]
            collectives: Counter[str] = Counter()
            for sample in (sample for each in steps for sample in each.collectives):
                collectives[sample.op] += sample.nbytes
            losses = [each.loss for each in steps]
            results.append((parameter_hash(trainer), losses, collectives))
        return results, plain.sent, sent

    from llmtrain_trainer.launcher.status_tracker import StatusTracker
    from llmtrain_trainer.runtime.reports import ProbeReport

    tracker = StatusTracker((0, 1), attempt=0)
    slowest: dict[int, float] = {}
    for rank, ((without, probed), quiet, sent) in enumerate(run_trainers(spec(), shards, work)):
        assert without == probed
        assert without[2], "no step was sampled"
        assert not any(isinstance(report, ProbeReport) for report in quiet)
        probes = [report for report in sent if isinstance(report, ProbeReport)]
        assert [report.step for report in probes] == [2, 4]
        for report in probes:
            found = [(each.group, each.nbytes, each.group_size) for each in report.samples]
            assert found == [("tp", SMALL, 2), ("tp", LARGE, 2)]
            tracker.on_report(rank, report)
        for each in probes[-1].samples:
            slowest[each.nbytes] = max(slowest.get(each.nbytes, 0.0), each.seconds)

    page = tracker.metrics.exposition().decode()
    for nbytes, seconds in slowest.items():
        assert f'llmtrain_probe_seconds{{group="tp",size="{nbytes}"}} {seconds!r}\n' in page
    (bandwidth,) = re.findall(
        r'^llmtrain_probe_bus_bandwidth_bytes_per_second{group="tp"} (.+)$', page, re.MULTILINE
    )
    # a ring of two sends as many bytes as it sums
    assert float(bandwidth) == pytest.approx(LARGE / slowest[LARGE])


def test_the_traffic_of_the_network_probe(
    shards: Any, run_trainers: Callable[..., list[Any]], job_spec: Callable[..., dict[str, Any]]
) -> None:
    """A barrier, the payload, and the shortest duration; for each group and size."""

    def work(trainer: Any) -> Any:
        from llmtrain_trainer.metrics.collectives import CollectiveMeter
        from llmtrain_trainer.metrics.network_probe import probe_groups

        with CollectiveMeter(trainer.grid.labels, "cpu") as meter:
            probe_groups(trainer.grid, trainer.device)
        return [(each.group, each.op, each.count, each.nbytes) for each in meter.samples()]

    nbytes = (4 + SMALL + 8) + (4 + LARGE + 8)
    for sent in run_trainers(job_spec(pipeline=2, context=2), shards, work):
        # the group of FSDP spans the context ranks
        assert sent == [(group, "all_reduce", 6, nbytes) for group in ("cp", "dp", "pp")]
    assert run_trainers(job_spec(), shards, work) == [[]]
