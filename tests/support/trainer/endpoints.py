"""What `/status` and `/metrics` of a launcher must contain."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


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


def check_metrics(text: str, lead: bool) -> None:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert families["llmtrain_step_seconds"].type == "histogram"
    assert samples["llmtrain_step_seconds_count", ()] >= 20
    group = (("group", "tp"), ("op", "all_gather"))
    assert samples["llmtrain_collective_seconds_count", group] > 0
    assert samples["llmtrain_collective_bytes_total", group] > 0
    assert samples["llmtrain_bus_bandwidth_bytes_per_second", group] > 0
    phases = {dict(labels).get("phase") for name, labels in samples if "step_phase" in name}
    assert {"data", "forward_backward", "clip", "optimizer"} <= phases
    ratios = [v for (name, _), v in samples.items() if name == "llmtrain_gpu_utilization_ratio"]
    assert len(ratios) == 2 and all(0 <= ratio <= 1 for ratio in ratios)
    assert any(name == "llmtrain_gpu_memory_bytes" and v > 0 for (name, _), v in samples.items())
    tokens = samples["llmtrain_tokens_total", ()]
    if lead:
        assert tokens >= 13 * 8 * 16 and tokens % (8 * 16) == 0
        assert samples["llmtrain_loss", ()] > 0 < samples["llmtrain_grad_norm", ()]
        full = samples["llmtrain_mfu_ratio", (("convention", "full-attention"),)]
        causal = samples["llmtrain_mfu_ratio", (("convention", "causal-attention"),)]
        assert full > causal > 0
    else:
        assert tokens == 0
