"""Recorded series of four jobs in four racks, of which one rack has a slow uplink.

A page with all series is scraped with their own labels. Counters grow with the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.recorded_series import WAITS, named

JOBS = {"alpha": "ab", "beta": "ac", "gamma": "bd", "delta": "cd"}
"""The racks of each job: a pod of two GPUs in each."""
SLOW_RACK = "b"
SLOWDOWN = 6.0
STEP_SECONDS, COLLECTIVE_SECONDS, CALLS = 0.5, 0.05, 4
"""Of a step: its time, its time in collectives, and their number."""
CALL_BYTES = 5e7
SAMPLED_STEPS = 0.2
"""Sampled steps in a second."""


def _pod(job: str, index: int, elapsed: float) -> Iterator[tuple[str, float]]:
    rack = f"rack-{JOBS[job][index]}"
    pod = {
        "namespace": "team",
        "llmtrain_job": job,
        "pod": f"{job}-0-{index}",
        "node": f"{rack}-{'ab'[job in ('gamma', 'delta')]}",
        "attempt": "0",
        "level_leaf": rack,
        "level_spine": "spine-1",
    }
    group, call = {"group": "dp"}, {"group": "dp", "op": "all_gather"}
    slow = SLOWDOWN if SLOW_RACK in JOBS[job] else 1.0
    sampled = 2 * SAMPLED_STEPS * elapsed

    def series(metric: str, value: float, labels: Mapping[str, str] = {}) -> tuple[str, float]:
        return named(metric, {**pod, **labels}), value

    yield series("llmtrain_sampled_steps_total", sampled)
    yield series("llmtrain_step_seconds_count", 2 * elapsed)
    yield series("llmtrain_step_seconds_sum", 2 * elapsed * STEP_SECONDS * (0.9 + 0.1 * slow))
    yield series("llmtrain_collective_seconds_count", sampled * CALLS, call)
    yield series("llmtrain_collective_seconds_sum", sampled * COLLECTIVE_SECONDS * slow, call)
    yield series("llmtrain_sampled_collective_bytes_total", sampled * CALLS * CALL_BYTES, call)
    for quantile in ("0.5", "0.99"):
        one = COLLECTIVE_SECONDS / CALLS * slow
        yield series("llmtrain_collective_recent_seconds", one, {**call, "quantile": quantile})
    yield series(WAITS, 0.1 * sampled * COLLECTIVE_SECONDS, {**group, "payload": "tensor"})
    yield series("llmtrain_probe_bus_bandwidth_bytes_per_second", 4e10 / slow, group)
    yield series("llmtrain_bus_bandwidth_bytes_per_second", 3.5e10 / slow, call)
    for gpu in ("0", "1"):
        rank = {"rank": str(2 * index + int(gpu)), "tp": gpu, "dp": str(index)}
        rank |= dict.fromkeys(("pp", "cp", "rep", "ep"), "0")
        yield series("llmtrain_rank_info", 1, {"gpu": gpu, **rank})
        yield series("llmtrain_straggler_score", 0.98, {"gpu": gpu})


def page(elapsed: float) -> str:
    """Return the series in the text format."""
    found = [sample for job in JOBS for index in range(2) for sample in _pod(job, index, elapsed)]
    planned = "llmtrain_operator_planned_collective_seconds"
    for job in JOBS:
        labels = {"namespace": "team", "job": job, "group": "dp"}
        found.append((named(planned, labels), COLLECTIVE_SECONDS))
    return "".join(f"{name} {value}\n" for name, value in found)


@contextmanager
def exporter() -> Iterator[str]:
    """Serve the page until the block ends; its value is the address of the target."""
    started = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page(time.monotonic() - started).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
