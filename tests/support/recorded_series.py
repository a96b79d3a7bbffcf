"""Series of a healthy cluster in the notation of `promtool test rules`, every two minutes.

A job of two pods with two GPUs each, in two leaf domains, takes a step per second.
"""

from __future__ import annotations

MINUTES = 2
SAMPLES = 120
"""Four hours."""

Series = dict[str, str]
"""Values by name and labels."""


def steady(value: float, samples: int = SAMPLES) -> str:
    return f"{value:g}x{samples}"


def growing(by: float, start: float = 0, samples: int = SAMPLES) -> str:
    """Return values that grow by `by` between two samples."""
    return f"{start:g}{by:+g}x{samples}"


def changing(before: float, after: float, last: int = 30) -> str:
    """Return values that change before the last samples."""
    return f"{before:g}x{SAMPLES - last} {after:g}x{last}"


def slowing(before: float, after: float, last: int = 30) -> str:
    """Return a counter whose growth changes before the last samples."""
    reached = before * (SAMPLES - last)
    return f"{growing(before, samples=SAMPLES - last)} {growing(after, reached + after, last)}"


def named(metric: str, labels: dict[str, str]) -> str:
    """Return a series by name and labels."""
    inner = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{inner}}}"


def pod_labels(index: int, attempt: int = 0) -> dict[str, str]:
    """Return the labels of the scrape target of a pod."""
    return {
        "namespace": "team",
        "llmtrain_job": "run",
        "pod": f"run-{attempt}-{index}",
        "node": f"n{index}",
        "attempt": str(attempt),
        "instance": f"10.0.0.{index}:9400",
        "job": "llmtrain/trainer",
        "level_leaf": "ab"[index],
        "level_node": f"n{index}",
    }


WAITS = "llmtrain_collective_wait_seconds_sum"
OPERATOR = {"namespace": "llmtrain-system", "pod": "operator-0", "instance": "10.0.1.1:9090"}
JOB = {"namespace": "team", "job": "run"}


def of_pod(index: int, metric: str, **labels: str) -> str:
    return named(metric, pod_labels(index) | labels)


def of_operator(metric: str, **labels: str) -> str:
    return named(metric, OPERATOR | {"job": "operator"} | labels)


def of_job(metric: str, **labels: str) -> str:
    """Return a series of the operator about a job, which keeps the job's own labels."""
    return named(metric, OPERATOR | JOB | labels)


def _pod(index: int) -> Series:
    steps = 60 * MINUTES * 2
    found = {
        of_pod(index, "llmtrain_step_seconds_count"): growing(steps),
        of_pod(index, "llmtrain_step_seconds_sum"): growing(steps),
        of_pod(index, "llmtrain_step_phase_seconds_sum", phase="data"): growing(steps / 20),
        of_pod(index, "llmtrain_sampled_steps_total"): growing(steps / 10),
        of_pod(index, "llmtrain_probe_bus_bandwidth_bytes_per_second", group="dp"): steady(1e10),
    }
    dp = {"group": "dp", "op": "all_gather"}
    found |= {
        of_pod(index, "llmtrain_collective_seconds_count", **dp): growing(steps),
        of_pod(index, "llmtrain_collective_seconds_sum", **dp): growing(steps / 50),
        of_pod(index, WAITS, group="dp", payload="tensor"): growing(steps / 200),
        # In the sum of the loss ranks wait longer than all other collectives take.
        of_pod(index, WAITS, group="dp", payload="scalar"): growing(steps / 10),
    }
    for gpu in ("0", "1"):
        ranks = {"rank": str(2 * index + int(gpu)), "tp": gpu, "dp": str(index)}
        ranks |= {"pp": "0", "cp": "0", "rep": "0", "ep": "0"}
        idle = of_pod(index, "llmtrain_gpu_utilization_ratio", gpu=gpu, source="nvml")
        found |= {
            of_pod(index, "llmtrain_rank_info", gpu=gpu, **ranks): steady(1),
            of_pod(index, "llmtrain_straggler_score", gpu=gpu): steady(0.98),
            idle: steady(0.9),
        }
    return found


def _rank_zero() -> Series:
    steps = 60 * MINUTES
    return {
        of_pod(0, "llmtrain_job_info", layout="tp2 dp2", model="tiny"): steady(1),
        of_pod(0, "llmtrain_step"): growing(steps),
        of_pod(0, "llmtrain_total_steps"): steady(1e6),
        # Time begins at 0 in `promtool test rules`.
        of_pod(0, "llmtrain_last_step_timestamp_seconds"): growing(steps),
        of_pod(0, "llmtrain_loss"): growing(-0.01, 5),
        of_pod(0, "llmtrain_mfu_ratio", convention="causal-attention"): steady(0.4),
        of_pod(0, "llmtrain_restarts_total"): steady(0),
        of_pod(0, "llmtrain_checkpoint_failures_total"): steady(0),
        of_pod(0, "llmtrain_checkpoint_last_step"): growing(steps),
    }


def _operator() -> Series:
    found = {
        of_operator("llmtrain_operator_build_info", version="1"): steady(1),
        of_operator("llmtrain_operator_leader"): steady(1),
        # Operators of other namespaces lead, too.
        of_operator("llmtrain_operator_leader", pod="a", watch_namespace="team-a"): steady(1),
        of_operator("process_start_time_seconds"): steady(1),
        of_operator("llmtrain_operator_api_requests_total", code="200"): growing(100),
        of_operator("llmtrain_operator_api_requests_total", code="409"): growing(10),
        of_operator("llmtrain_operator_informer_staleness_seconds", informer="pods"): steady(20),
        of_operator("llmtrain_operator_unreadable_objects", informer="jobs"): steady(0),
        of_operator("llmtrain_operator_queue_depth"): steady(0),
        of_operator("llmtrain_operator_quarantined_nodes"): steady(0),
        of_operator("llmtrain_operator_nodes", state="used"): steady(2),
        of_operator("llmtrain_operator_nodes", state="unready"): steady(0),
        of_operator("llmtrain_operator_gpu_seconds_total", state="training"): growing(480),
        of_operator("llmtrain_operator_gpu_seconds_total", state="starting"): growing(20),
        of_operator("llmtrain_operator_gpu_seconds_total", state="waiting"): growing(900),
        of_operator("llmtrain_operator_gpu_seconds_total", state="lost"): steady(0),
        of_operator("llmtrain_operator_failures_total", reason="NodeLost"): steady(0),
        of_operator("llmtrain_operator_largest_free_block_gpus", level="leaf"): steady(4),
    }
    for domain, free in (("a", 4), ("b", 2)):
        gpus = {"level": "leaf", "domain": domain}
        found[of_operator("llmtrain_operator_gpus", state="free", **gpus)] = steady(free)
        found[of_operator("llmtrain_operator_gpus", state="used", **gpus)] = steady(2)
    for metric in ("reconcile", "placement"):
        name = f"llmtrain_operator_{metric}_seconds"
        found[of_operator(f"{name}_count")] = growing(50)
        for bound in ("0.01", "10", "+Inf"):
            found[of_operator(f"{name}_bucket", le=bound)] = growing(50)
    return found | {
        of_job("llmtrain_operator_job_phase", phase="Running"): steady(1),
        of_job("llmtrain_operator_planned_step_seconds"): steady(0.9),
        of_job("llmtrain_operator_planned_collective_seconds", group="dp"): steady(0.1),
    }


HEALTHY: Series = _pod(0) | _pod(1) | _rank_zero() | _operator()
