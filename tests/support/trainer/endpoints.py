"""What `/status` and `/metrics` of a launcher must contain."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_core.images import VERSION
from llmtrain_core.plan.network.communication import SCALAR_BYTES


def check_status(status: dict[str, Any], steps: int) -> None:
    assert status["phase"] == "training" and status["totalSteps"] == steps
    assert status["attempt"] == 0 and status["heartbeat"].endswith("Z")
    for key in ("loss", "gradNorm", "stepSeconds", "tokensPerSecond", "mfu", "heldOutLossBefore"):
        assert status[key] > 0, key
    assert status["tokensPerSecond"] == pytest.approx(8 * 16 / status["stepSeconds"])
    assert status["utilization"]["source"] in {"cpu", "nvml"}
    seen = {(entry["group"], entry["op"]) for entry in status["collectives"]}
    assert {("tp", "all_gather"), ("tp", "reduce_scatter"), ("dp", "all_gather")} <= seen
    assert all(entry["bytesPerStep"] > 0 < entry["count"] for entry in status["collectives"])
    assert ("dp", "all_reduce") in seen  # scalars


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Value by name without the prefix, and sorted labels."""


def check_metrics(text: str, lead: bool, full: bool) -> None:
    """Check the page of a pod of two ranks of tp2·dp2 that has run a sampled step."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples: Samples = {
        (sample.name.removeprefix("llmtrain_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert families["llmtrain_step_seconds"].type == "histogram"
    assert samples["step_seconds_count", ()] >= 20
    phases = {dict(labels).get("phase") for name, labels in samples if "step_phase" in name}
    assert {"data", "forward_backward", "clip", "optimizer"} <= phases
    ratios = [v for (name, _), v in samples.items() if name == "gpu_utilization_ratio"]
    assert len(ratios) == 2 and all(0 <= ratio <= 1 for ratio in ratios)
    assert any(name == "gpu_memory_bytes" and v > 0 for (name, _), v in samples.items())
    _check_identity(samples, pod=0 if lead else 1)
    _check_collectives(samples)
    assert families["llmtrain_collective_seconds"].type == ("histogram" if full else "summary")
    if lead:
        _check_job(samples)
    else:
        assert not JOB_SAMPLES & {name for name, _ in samples}


JOB_SAMPLES = {
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
    "tokens_total",
    "checkpoint_failures_total",
    "restarts_total",
}
"""Samples of the pod of rank 0 of a job that has not saved yet."""


def _check_identity(samples: Samples, pod: int) -> None:
    (build,) = [dict(labels) for name, labels in samples if name == "build_info"]
    assert build == {"version": VERSION, "torch": version("torch")}
    assert samples["process_resident_memory_bytes", ()] > 0
    ranks = [dict(labels) for name, labels in samples if name == "rank_info"]
    zeros = dict.fromkeys(("pp", "cp", "rep", "ep"), "0")
    for gpu in (0, 1):
        rank = str(2 * pod + gpu)
        position = {"gpu": str(gpu), "rank": rank, "tp": str(gpu), "dp": str(pod)}
        assert position | zeros in ranks
    assert len(ranks) == 2


def _check_collectives(samples: Samples) -> None:
    gather = (("group", "tp"), ("op", "all_gather"))
    count = samples["collective_seconds_count", gather]
    mean = samples["collective_seconds_sum", gather] / count
    median, p99 = (
        samples["collective_recent_seconds", (*gather, ("quantile", quantile))]
        for quantile in ("0.5", "0.99")
    )
    assert 0 < median <= p99 and mean > 0
    assert samples["sampled_steps_total", ()] >= 2  # of two ranks
    assert samples["sampled_collective_bytes_total", gather] > SCALAR_BYTES * count
    assert samples["bus_bandwidth_bytes_per_second", gather] > 0
    waits = {payload: (("group", "tp"), ("payload", payload)) for payload in ("tensor", "scalar")}
    calls, seconds = (_sum_of_operations(samples, "tp", part) for part in ("count", "sum"))
    assert samples["collective_wait_seconds_count", waits["tensor"]] == calls
    assert samples["collective_wait_seconds_sum", waits["tensor"]] <= seconds
    assert samples["collective_wait_seconds_count", waits["scalar"]] > 0
    # data ranks sum scalars only: they count in /status, not here
    sums = (("group", "dp"), ("op", "all_reduce"))
    assert not {labels for _, labels in samples} & {sums, (*sums, ("quantile", "0.5"))}


def _sum_of_operations(samples: Samples, group: str, part: str) -> float:
    return sum(
        value
        for (name, labels), value in samples.items()
        if name == f"collective_seconds_{part}" and ("group", group) in labels
    )


def _check_job(samples: Samples) -> None:
    assert {name for name, _ in samples} >= JOB_SAMPLES
    info = (("layout", "tp2·dp2"), ("model", "custom"), ("namespace", "lab"))
    assert samples["job_info", info] == 1
    tokens, step, total = (samples[name, ()] for name in ("tokens_total", "step", "total_steps"))
    assert step >= 13 and tokens == step * 8 * 16
    assert samples["learning_rate", ()] > 0 < samples["eta_seconds", ()]
    assert total > step
    started = samples["process_start_time_seconds", ()]
    assert started < samples["last_step_timestamp_seconds", ()] <= time.time()
    assert samples["loss", ()] > 0 < samples["grad_norm", ()]
    assert samples["held_out_loss", (("when", "before"),)] > 0
    assert ("held_out_loss", (("when", "after"),)) not in samples
    assert samples["checkpoint_failures_total", ()] == samples["restarts_total", ()] == 0
    full = samples["mfu_ratio", (("convention", "full-attention"),)]
    causal = samples["mfu_ratio", (("convention", "causal-attention"),)]
    assert full > causal > 0
