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
_PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes")


def documented_metrics() -> frozenset[str]:
    """Return the names of metrics in the pages of the operator and the trainer."""
    pages = [(ROOT / f"docs/{name}.md").read_text("utf-8") for name in ("operator", "trainer")]
    return frozenset(re.findall(r"`(llmtrain_\w+)", "\n".join(pages)))


def exported_series() -> frozenset[str]:
    """Return all names that an expression may use."""
    ours = {name + suffix for name in documented_metrics() for suffix in _SUFFIXES}
    recorded = {rule.record for rule in RECORDINGS}
    return frozenset(ours | recorded | set(HARDWARE) | {*_OWN, *_PROCESS})
