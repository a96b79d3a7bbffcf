"""The status and the metrics of a pod, from the reports of its ranks."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.status.communication import CommunicationSetting, CommunicationTuning
from llmtrain_core.api.status.network import NcclNetwork
from llmtrain_core.layout import Layout
from llmtrain_core.plan.model.flops import training_flops_per_token
from llmtrain_trainer.job_spec import from_spec
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.launcher.termination import result_message
from llmtrain_trainer.metrics.registry import TrainingMetrics
from llmtrain_trainer.runtime.reports import (
    CheckpointReport,
    CollectiveSample,
    CommunicationReport,
    EvaluationReport,
    HeldOutScore,
    NcclReport,
    PhaseReport,
    SaveFailedReport,
    StepReport,
)

pytestmark = pytest.mark.unit

LOST = FailureInfo("PeerLost", "gloo", exit_code=200)


def _tracker(rank: int = 0) -> StatusTracker:
    """Return the tracker of a pod of two ranks; the job has four."""
    tracker = StatusTracker((rank, rank + 1), attempt=2)
    spec = {
        "model": {"preset": "tiny"},
        "data": {"sources": [{"name": "a", "uri": "file:///a"}]},
        "training": {"steps": 9, "globalBatchSize": 4, "precision": "float32"},
        "parallelism": {"data": 4},
        "workers": {"image": "x", "gpusPerNode": 2},
    }
    tracker.set_job(from_spec("job", spec, "team"))
    tracker.set_peak_flops(1e9)
    return tracker


def test_status_and_result_have_the_keys_of_the_contract() -> None:
    tracker = _tracker()
    tracker.on_report(0, EvaluationReport("before", HeldOutScore(7.0), 0))
    setting = CommunicationSetting(overlap=True)
    tuning = CommunicationTuning(state="Trying", setting=setting, from_step=1, trials=[])
    tracker.on_report(0, CommunicationReport(tuning))
    sample = CollectiveSample("tp", "all_gather", (8, 4088), 2, (0.1, 0.3))
    step = StepReport(1, 0.5, {"data": 0.1}, 512, 6.5, math.inf, 0.01, (sample,), 1.0)
    tracker.on_report(0, step)
    tracker.on_report(1, step)
    status = tracker.status.document()
    assert set(status) == {
        "phase",
        "attempt",
        "step",
        "totalSteps",
        "loss",
        "gradNorm",
        "stepSeconds",
        "tokensPerSecond",
        "mfu",
        "lastCheckpointStep",
        "heldOutLossBefore",
        "heldOutLossDuring",
        "heldOutLossAfter",
        "exactMatchBefore",
        "exactMatchDuring",
        "exactMatchAfter",
        "heartbeat",
        "utilization",
        "collectives",
        "restartsInPlace",
        "lastRestart",
        "networkFallback",
        "transfers",
        "communication",
        "networkTuning",
        "nccl",
        "chatTemplate",
    }
    assert (status["step"], status["loss"], status["gradNorm"]) == (1, 6.5, None)
    assert status["communication"] == {
        "state": "Trying",
        "setting": {"copiesPerRack": 1, "overlap": True, "bucketBytes": 0, "chunks": 1},
        "fromStep": 1,
        "trials": [],
    }
    assert status["tokensPerSecond"] == 1024 and status["mfu"] > 0
    assert status["collectives"] == [
        {"group": "tp", "op": "all_gather", "count": 2, "bytesPerStep": 4096, "meanSeconds": 0.2}
    ]
    text = tracker.metrics.exposition().decode()
    assert "llmtrain_tokens_total 512.0" in text  # once, though two ranks reported
    assert status["chatTemplate"] is None
    tracker.set_chat_template("/data/\x1b[31m" + "x" * 9000)
    shown = tracker.status.document()["chatTemplate"]
    assert len(shown) == 300 and shown.isprintable() and shown.startswith("/data/")
    assert "/data/" not in tracker.metrics.exposition().decode()
    assert "llmtrain_step_seconds_count 2.0" in text
    assert "llmtrain_sampled_steps_total 2.0" in text
    # /status counts the scalar
    assert 'sampled_collective_bytes_total{group="tp",op="all_gather"} 8176.0' in text
    assert json.loads(result_message(tracker.status))["result"].keys() == status.keys() - {
        "heartbeat",
        "transfers",
        "communication",
        "networkTuning",
        "nccl",
    }


JOB_COUNTERS = {"checkpoint_failures", "restarts"}
JOB_FAMILIES = JOB_COUNTERS | {
    "job_info",
    "step",
    "total_steps",
    "learning_rate",
    "held_out_loss",
    "eta_seconds",
    "last_step_timestamp_seconds",
    "loss",
    "grad_norm",
    "mfu_ratio",
    "tokens",
    "checkpoint_seconds",
    "checkpoint_last_step",
}
"""Families that only the pod of rank 0 exports."""


def _families(tracker: StatusTracker) -> set[str]:
    """Names of the families with a sample, without the prefix."""
    page = tracker.metrics.exposition().decode()
    found = text_string_to_metric_families(page)
    return {family.name.removeprefix("llmtrain_") for family in found if family.samples}


def _report_everything(tracker: StatusTracker, rank: int) -> None:
    for report in (
        EvaluationReport("before", HeldOutScore(7.0), 0),
        StepReport(1, 0.5, {}, 512, 6.5, 1.0, 0.01),
        CheckpointReport(1, {"stage": 0.1}),
        SaveFailedReport(1),
    ):
        tracker.on_report(rank, report)
    tracker.on_restart(LOST, datetime.now(UTC))


def test_job_metrics_come_from_the_pod_of_rank_0_only() -> None:
    tracker = _tracker(rank=2)
    _report_everything(tracker, 2)
    tracker.on_report(2, PhaseReport("training", 1))
    tracker.on_report(3, PhaseReport("saving", 1))  # not the lowest rank
    assert tracker.status.phase == "training"
    assert not _families(tracker) & JOB_FAMILIES
    leading = _tracker()
    _report_everything(leading, 0)
    assert _families(leading) >= JOB_FAMILIES


def test_a_metric_without_a_value_is_absent() -> None:
    process = {"process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"}
    for rank, counters in ((0, JOB_COUNTERS), (2, set())):
        tracker = StatusTracker((rank, rank + 1), attempt=0)
        families = _families(tracker)
        assert process <= families
        rest = {name for name in families if not name.startswith("process_")}
        assert rest == {"build_info", *counters}
    page = StatusTracker((0,), attempt=0).metrics.exposition().decode()
    assert "llmtrain_restarts_total 0.0\n" in page
    assert "llmtrain_checkpoint_failures_total 0.0\n" in page
    known = _families(_tracker()) - _families(StatusTracker((0,), attempt=0))
    assert known == {"job_info", "total_steps", "rank_info"}


def test_progress_of_the_job() -> None:
    tracker = _tracker()
    before = time.time()
    tracker.on_report(0, EvaluationReport("before", HeldOutScore(7.0), 0))
    tracker.on_report(0, StepReport(4, 2.0, {}, 512, 6.5, 1.0, 0.25))
    page = tracker.metrics.exposition().decode()
    info = 'llmtrain_job_info{layout="dp4",model="tiny",namespace="team"} 1.0'
    lines = page.splitlines()
    assert info in lines
    assert {"llmtrain_step 4.0", "llmtrain_total_steps 9.0"} <= set(lines)
    assert "llmtrain_learning_rate 0.25" in lines
    assert "llmtrain_eta_seconds 10.0" in lines  # five steps of two seconds
    assert 'llmtrain_held_out_loss{when="before"} 7.0' in lines
    assert 'when="after"' not in page
    tracker.on_report(0, EvaluationReport("during", HeldOutScore(5.0), 4))
    assert 'llmtrain_held_out_loss{when="during"} 5.0' in tracker.metrics.exposition().decode()
    assert tracker.status.document()["heldOutLossDuring"] == 5.0
    last = next(line for line in lines if line.startswith("llmtrain_last_step_timestamp_seconds "))
    assert before <= float(last.split()[1]) <= time.time()


def test_why_nccl_uses_tcp_is_shown_unless_the_trainer_has_decided_it() -> None:
    tracker, network = _tracker(), NcclNetwork(network="Socket", devices=["eth0"])
    tracker.on_report(0, NcclReport(network, "TcpInsteadOfRdma: x" + "x" * 600))
    tracker.on_report(1, NcclReport(NcclNetwork(network="IB")))
    shown = tracker.status.document()
    assert shown["nccl"] == {"network": "Socket", "devices": ["eth0"]}
    assert shown["networkFallback"].startswith("TcpInsteadOfRdma: ")
    assert len(shown["networkFallback"]) == 512
    tracker.on_network_fallback("rank 1")
    assert tracker.status.document()["networkFallback"] == "MemlockTooLow: rank 1"
    restarted = _tracker()
    restarted.on_report(0, NcclReport(network, "TcpInsteadOfRdma: x"))
    restarted.on_report(0, NcclReport(NcclNetwork(network="IB")))
    assert restarted.status.document()["networkFallback"] is None


def test_every_gpu_has_the_coordinates_of_its_rank() -> None:
    layout = Layout(tensor=2, context=2, data=2, replicate=2, pipeline=2, expert=4)
    metrics = TrainingMetrics()
    ranks = (0, 3, 13, 31)
    metrics.set_ranks(ranks, layout)
    page = metrics.exposition().decode()
    (family,) = [f for f in text_string_to_metric_families(page) if f.name == "llmtrain_rank_info"]
    assert [sample.labels["gpu"] for sample in family.samples] == ["0", "1", "2", "3"]
    for rank, sample in zip(ranks, family.samples, strict=True):
        at = {name: int(text) for name, text in sample.labels.items()}
        assert at["rank"] == rank and sample.value == 1
        position = layout.coordinates(rank)
        assert (at["tp"], at["pp"], at["rep"]) == (
            position["tensor"],
            position["pipeline"],
            position["replicate"],
        )
        assert (at["dp"], at["cp"]) == (position["data"], position["context"])
        experts = next(group for group in layout.groups("expert") if rank in group)
        assert experts.index(rank) == at["ep"]


def test_the_shown_rate_ignores_the_first_step_after_a_start() -> None:
    tracker = _tracker()
    sample = CollectiveSample("tp", "all_gather", (2048, 2048), 2, (0.1, 0.3))
    tracker.on_report(0, StepReport(41, 30.0, {}, 512, 6.5, 1.0, 0.01))  # resumed: it connects
    tracker.on_report(0, StepReport(42, 3.0, {}, 512, 6.5, 1.0, 0.01, (sample,)))
    tracker.on_report(0, StepReport(43, 2.0, {}, 512, 6.5, 1.0, 0.01))
    assert tracker.status.step_seconds == 2.0
    tracker.on_report(0, StepReport(44, 1.0, {}, 512, 6.5, 1.0, 0.01))
    assert tracker.status.step_seconds == pytest.approx(1.8)


def test_a_rank_tells_the_steps_that_follow_from_the_data() -> None:
    tracker = _tracker()
    assert tracker.status.total_steps == 9
    tracker.on_report(0, PhaseReport("training", 0, 14))
    tracker.on_report(0, PhaseReport("saving", 4))
    tracker.on_report(0, StepReport(4, 2.0, {}, 512, 6.5, 1.0, 0.25))
    assert tracker.status.total_steps == 14
    lines = tracker.metrics.exposition().decode().splitlines()
    assert {"llmtrain_total_steps 14.0", "llmtrain_eta_seconds 20.0"} <= set(lines)


def test_rate_and_mfu_count_the_tokens_of_a_step_and_how_far_they_attend() -> None:
    """Not the size of the batch: a step with padding had the rate and MFU of a full one."""
    run = _tracker()._run
    assert run is not None
    for tokens, span in ((512, None), (100, None), (100, 10.0)):
        tracker = _tracker()
        tracker.set_peak_flops(1e9)
        tracker.on_report(0, StepReport(1, 2.0, {}, tokens, 6.5, 1, 0.1, attention_span=span))
        assert tracker.status.tokens_per_second == tokens / 2.0
        flops = training_flops_per_token(run.shape, "causal-attention", span) * tokens / 2.0
        assert tracker.status.mfu == pytest.approx(flops / (1e9 * run.layout.world_size))
        assert f"llmtrain_tokens_total {float(tokens)}\n" in tracker.metrics.exposition().decode()
