"""Names of all series that Prometheus has: exported by our programs, recorded, or of hardware."""

from __future__ import annotations

import re
import tomllib

from llmtrain_monitoring.rules import RECORDINGS
from tests.support.paths import ROOT

HARDWARE: dict[str, str] = tomllib.loads(
    (ROOT / "hack/llmtrain_monitoring/hardware.toml").read_text("utf-8")
)["metrics"]
"""Reason by metric."""
_SUFFIXES = ("", "_sum", "_count", "_bucket")
_OWN = ("ALERTS", "up", *(f"process_{name}" for name in ("open_fds", "start_time_seconds")))
_AGREED = [
    "bus_bandwidth_bytes_per_second",
    "collective_recent_seconds",
    "collective_wait_seconds",
    "eta_seconds",
    "held_out_loss",
    "job_info",
    "last_step_timestamp_seconds",
    "learning_rate",
    "operator_build_info",
    "operator_failures_total",
    "operator_finished_total",
    "operator_gpu_seconds_total",
    "operator_gpus",
    "operator_job_phase",
    "operator_job_waiting",
    "operator_largest_free_block_gpus",
    "operator_nodes",
    "operator_oldest_wait_seconds",
    "operator_planned_collective_seconds",
    "operator_planned_step_seconds",
    "operator_restarts_total",
    "rank_info",
    "sampled_collective_bytes_total",
    "sampled_steps_total",
    "step",
    "total_steps",
]
"""Names of metrics that the pages do not list yet."""
_PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes")


def documented_metrics() -> frozenset[str]:
    """Return the names of metrics in the pages of the operator and the trainer."""
    pages = [(ROOT / f"docs/{name}.md").read_text("utf-8") for name in ("operator", "trainer")]
    return frozenset(re.findall(r"`(llmtrain_\w+)", "\n".join(pages)))


def exported_series() -> frozenset[str]:
    """Return all names that an expression may use."""
    names = documented_metrics() | {f"llmtrain_{name}" for name in _AGREED}
    ours = {name + suffix for name in names for suffix in _SUFFIXES}
    recorded = {rule.record for rule in RECORDINGS}
    return frozenset(ours | recorded | set(HARDWARE) | {*_OWN, *_PROCESS})
