"""What measuring costs: CPU time of a step that is not sampled, and of a scrape of a large pod."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.job_spec import from_spec
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.metrics.devices import DeviceName, DeviceUse
from llmtrain_trainer.metrics.network_probe import SIZES
from llmtrain_trainer.runtime.pod_env import MetricsDetail
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CollectiveSample,
    EvaluationReport,
    HeldOutScore,
    ProbeReport,
    ProbeSample,
    SaveFailedReport,
    StepReport,
)
from tests.support.cpu_time import Laps
from tests.support.trainer.jobs import job_spec
from tests.support.trainer.ranks import run_world

pytestmark = [pytest.mark.perf, pytest.mark.timeout(300)]

GPUS = 8
PHASES = ("data", "forward_backward", "clip", "optimizer", "copies")
PAIRS = [
    *(("tp", op) for op in ("all_gather", "reduce_scatter", "all_reduce")),
    *(("cp", op) for op in ("all_gather", "reduce_scatter")),
    *(("dp", op) for op in ("all_gather", "reduce_scatter", "all_reduce")),
    ("ep", "all_to_all"),
    *(("edp", op) for op in ("all_gather", "reduce_scatter")),
    *(("rep", op) for op in ("all_gather", "all_to_all", "all_reduce")),
    *(("rep-near", op) for op in ("all_gather", "reduce_scatter")),
    *(("rep-far", op) for op in ("all_gather", "all_to_all", "all_reduce")),
    *(("pp", op) for op in ("send", "recv", "all_reduce")),
]
SCRAPE_SECONDS, SERIES, SHARE = 0.005, 400, 0.01


SECONDS = tuple(1e-4 * call for call in range(1, 37))
WAITS = tuple(seconds / 2 for seconds in SECONDS)
PAYLOADS = (8, *(10**8,) * (len(SECONDS) - 1))
"""A scalar, whose waits are series of their own, and tensors."""


def _report(step: int, sampled: bool) -> StepReport:
    collectives = tuple(
        CollectiveSample(group, op, PAYLOADS, 8, SECONDS, WAITS) for group, op in PAIRS
    )
    return StepReport(
        step=step,
        seconds=0.8,
        phases=dict.fromkeys(PHASES, 0.2),
        tokens=4096,
        loss=3.0,
        grad_norm=1.0,
        learning_rate=3e-4,
        collectives=collectives if sampled else (),
        straggler_score=0.97 if sampled else None,
    )


def _cpu(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of one call on a quiet core: the best of five series."""
    found = []
    for _ in range(5):
        laps = Laps()
        for _ in range(rounds):
            work()
        found.append(laps.lap() / rounds)
    return min(found)


def _full_pod(detail: MetricsDetail = "basic") -> StatusTracker:
    """Everything that a pod of eight GPUs can tell."""
    tracker = StatusTracker(tuple(range(GPUS)), attempt=0, detail=detail)
    spec = job_spec(data=GPUS, training={"microBatchSize": 1})
    tracker.set_job(from_spec("test", spec, "lab"))
    tracker.set_peak_flops(1e15)
    tracker.on_restart(FailureInfo("PeerLost", "gone"), datetime.now(UTC))
    tracker.metrics.set_device_names(
        [DeviceName(f"GPU-{gpu}", 'a "model"\\') for gpu in range(GPUS)]
    )
    memory = {"used": 7 * 10**10, "total": 8 * 10**10}
    activity = {"sm": 0.8, "tensor": 0.5, "dram": 0.3}
    uses = [DeviceUse(gpu, 1.0, memory, activity, 1e6) for gpu in range(GPUS)]
    tracker.on_devices("nvml", uses)
    groups = sorted({group for group, _ in PAIRS})
    probes = tuple(ProbeSample(group, size, 8, 1e-4) for group in groups for size in SIZES)
    for rank in range(GPUS):
        tracker.on_report(rank, _report(1, sampled=True))
        tracker.on_report(rank, ProbeReport(1, probes))
    for report in (
        EvaluationReport("before", HeldOutScore(7.0), 0),
        EvaluationReport("after", HeldOutScore(3.0), 1),
        CheckpointReport(1, {"stage": 0.3, "upload": 4.0}),
        SaveFailedReport(1),
    ):
        tracker.on_report(0, report)
    return tracker


@pytest.mark.parametrize(("detail", "most"), [("basic", SERIES), ("full", 1300)])
def test_a_scrape_of_eight_gpus(detail: MetricsDetail, most: int) -> None:
    tracker = _full_pod(detail)
    page = tracker.metrics.exposition()
    seconds = _cpu(tracker.metrics.exposition, 20)
    series = sum(not line.startswith(b"#") for line in page.splitlines())
    print(f"\n{series} series, {len(page) / 1e3:.0f} KB: {seconds * 1e3:.2f} ms of CPU")
    assert series <= most
    assert seconds < SCRAPE_SECONDS * most / SERIES


def test_a_step_that_is_not_sampled(tmp_path: Path) -> None:
    """The rank's timers and message and the launcher's counting, against the step itself."""
    import numpy as np
    import torch

    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards
    from llmtrain_trainer.training.trainer import StepTimer, Trainer

    tokens = np.random.default_rng(0).integers(0, 320, 4000).astype(np.uint32)
    for split in ("train", "held-out"):
        write_shards(tmp_path, split, [tokens], 320)
    data = PreparedData(tmp_path, 4000, 4000, "digest")
    run = from_spec("test", job_spec(precision="float32"))

    def steps(rank: int) -> float:
        trainer = Trainer(run, data, torch.device("cpu"), lambda report: None)
        trainer.take_step()
        return _cpu(trainer.take_step, 3)

    (step,) = run_world(1, steps)
    tracker, report = _full_pod(), _report(2, sampled=False)

    def measure() -> None:
        timer = StepTimer("cpu")
        for name in PHASES:
            with timer.part(name):
                pass
        tracker.on_report(0, pickle.loads(pickle.dumps(report)))

    measured = _cpu(measure, 200)
    print(f"\n{measured * 1e6:.0f} us of {step * 1e3:.1f} ms: {measured / step:.2%}")
    assert measured < SHARE * step
