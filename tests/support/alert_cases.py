"""For each alert, what differs from a healthy cluster, and which alerts then fire."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.recorded_series import (
    MINUTES,
    SAMPLES,
    WAITS,
    Series,
    changing,
    growing,
    named,
    of_job,
    of_operator,
    of_pod,
    pod_labels,
    slowing,
    steady,
)


@dataclass(frozen=True, slots=True)
class AlertCase:
    """One fault. `labels` are those by which the alert names the culprit."""

    changed: Series
    labels: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    """Other alerts that the same fault causes."""
    samples: int = SAMPLES


_RUN = {"namespace": "team", "llmtrain_job": "run"}
_STEPS = 60 * MINUTES
_TRANSFER = {"group": "dp", "op": "all_gather"}


def _collectives(index: int, factor: float) -> Series:
    """Return collectives of a pod whose transfer takes `factor` times as long in the last hour."""
    sums = of_pod(index, "llmtrain_collective_seconds_sum", **_TRANSFER)
    whole, wait = _STEPS / 25, _STEPS / 100
    return {sums: slowing(whole, wait + factor * (whole - wait))}


def _waiting(reason: str) -> Series:
    queued = {"job": "next", "reason": reason}
    return {of_operator("llmtrain_operator_job_waiting", **queued, namespace="team"): steady(1)}


def _buckets(metric: str) -> Series:
    """Return a histogram of which half of the observations are slow."""
    name = f"llmtrain_operator_{metric}_seconds_bucket"
    bounds = {"0.01": 25, "10": 50, "+Inf": 50}
    return {of_operator(name, le=bound): growing(by) for bound, by in bounds.items()}


def _phase(phase: str, job: str, values: str) -> Series:
    return {of_job("llmtrain_operator_job_phase", phase=phase, job=job): values}


def _attempts(count: int) -> Series:
    """Return job information of attempts of which each lived for ten minutes."""
    before = SAMPLES - 5 * count
    found = {of_pod(0, "llmtrain_job_info", layout="tp2 dp2", model="tiny"): f"1x{before}"}
    for attempt in range(1, count + 1):
        labels = pod_labels(0, attempt) | {"layout": "tp2 dp2", "model": "tiny"}
        absent = before + 5 * (attempt - 1)
        found[named("llmtrain_job_info", labels)] = f"_x{absent} 1x5"
    return found


JOB_CASES = {
    "LLMTrainStepStalled": AlertCase(
        {
            of_pod(0, "llmtrain_step"): f"{growing(_STEPS, samples=90)} {_STEPS * 90}x30",
            of_pod(0, "llmtrain_last_step_timestamp_seconds"): (
                f"{growing(_STEPS, samples=90)} {_STEPS * 90}x30"
            ),
        },
        _RUN,
    ),
    "LLMTrainJobStartsSlowly": AlertCase(
        _phase("Starting", "slow", steady(1)), {"namespace": "team", "job": "slow"}
    ),
    "LLMTrainJobFailed": AlertCase(
        _phase("Failed", "bad", "_x110 1x10"), {"namespace": "team", "job": "bad"}
    ),
    "LLMTrainRestartLoop": AlertCase(
        {of_pod(0, "llmtrain_restarts_total"): "0x100 1x5 2x5 3x10"}, _RUN
    ),
    "LLMTrainGangRestartLoop": AlertCase(_attempts(4), _RUN),
    "LLMTrainMetricsMissing": AlertCase(
        _phase("Running", "unseen", steady(1)), {"namespace": "team", "job": "unseen"}
    ),
    "LLMTrainStepSlowerThanUsual": AlertCase(
        {
            of_pod(index, "llmtrain_step_seconds_sum"): slowing(2 * _STEPS, 3 * _STEPS)
            for index in (0, 1)
        },
        _RUN,
    ),
    "LLMTrainSlowerThanPlanned": AlertCase(
        {of_job("llmtrain_operator_planned_step_seconds"): steady(0.3)}, _RUN
    ),
    "LLMTrainLowMFU": AlertCase(
        {of_pod(0, "llmtrain_mfu_ratio", convention="causal-attention"): changing(0.4, 0.1)}, _RUN
    ),
    "LLMTrainGpuIdle": AlertCase(
        {
            of_pod(1, "llmtrain_gpu_utilization_ratio", gpu="1", source="nvml"): changing(
                0.9, 0.05, last=45
            )
        },
        {**_RUN, "node": "n1", "gpu": "1"},
    ),
    "LLMTrainDataBound": AlertCase(
        {
            of_pod(index, "llmtrain_step_phase_seconds_sum", phase="data"): slowing(12, 80)
            for index in (0, 1)
        },
        _RUN,
    ),
    "LLMTrainCheckpointTooOld": AlertCase(
        {of_pod(0, "llmtrain_checkpoint_last_step"): steady(100)}, _RUN
    ),
    "LLMTrainCheckpointFailing": AlertCase(
        {of_pod(0, "llmtrain_checkpoint_failures_total"): changing(0, 1, last=10)}, _RUN
    ),
    "LLMTrainLossNotFalling": AlertCase({of_pod(0, "llmtrain_loss"): changing(4, 9)}, _RUN),
}

NETWORK_CASES = {
    "LLMTrainCollectiveSlow": AlertCase(
        _collectives(0, 1.8) | _collectives(1, 1.8), {**_RUN, "group": "dp"}
    ),
    "LLMTrainCollectiveSlowerThanPlanned": AlertCase(
        {of_job("llmtrain_operator_planned_collective_seconds", group="dp"): steady(0.04)},
        {**_RUN, "group": "dp"},
        others=("LLMTrainUplinkCongested",),
    ),
    "LLMTrainUplinkCongested": AlertCase(
        _collectives(1, 4),
        {"level_leaf": "b"},
        others=("LLMTrainCollectiveSlow", "LLMTrainCollectiveSlowerThanPlanned"),
    ),
    "LLMTrainProbeBandwidthDropped": AlertCase(
        {
            of_pod(1, "llmtrain_probe_bus_bandwidth_bytes_per_second", group="dp"): changing(
                1e10, 5e9
            )
        },
        {**_RUN, "node": "n1", "group": "dp"},
    ),
    "LLMTrainStraggler": AlertCase(
        {of_pod(1, "llmtrain_straggler_score", gpu="1"): changing(0.98, 0.6)},
        {**_RUN, "node": "n1", "rank": "3"},
    ),
    "LLMTrainWaitShareHigh": AlertCase(
        {
            of_pod(index, "llmtrain_collective_seconds_sum", **_TRANSFER): slowing(4.8, 9.6)
            for index in (0, 1)
        }
        | {of_pod(index, WAITS, group="dp", payload="tensor"): slowing(1.2, 6) for index in (0, 1)},
        {**_RUN, "group": "dp"},
    ),
}

FLEET_CASES = {
    "LLMTrainJobWaitingTooLong": AlertCase(
        {
            key: steady(1, 400)
            for key in (
                *_waiting("InsufficientGpus"),
                of_operator("llmtrain_operator_leader"),
            )
        },
        {"namespace": "team", "job": "next"},
        samples=400,
    ),
    "LLMTrainJobCannotStart": AlertCase(
        _waiting("UnknownLevel"), {"namespace": "team", "job": "next", "reason": "UnknownLevel"}
    ),
    "LLMTrainQueueStuck": AlertCase(
        {
            of_operator("llmtrain_operator_queue_depth"): steady(3),
            of_operator("llmtrain_operator_placement_seconds_count"): steady(7),
        }
    ),
    "LLMTrainFragmented": AlertCase(
        _waiting("DomainTooSmall")
        | {of_operator("llmtrain_operator_largest_free_block_gpus", level="leaf"): steady(2)},
        {"level": "leaf"},
    ),
    "LLMTrainGoodputLow": AlertCase(
        {of_operator("llmtrain_operator_gpu_seconds_total", state="starting"): growing(480)}
    ),
    "LLMTrainNodesQuarantined": AlertCase(
        {of_operator("llmtrain_operator_quarantined_nodes"): steady(1)}
    ),
    "LLMTrainNodesUnready": AlertCase(
        {of_operator("llmtrain_operator_nodes", state="unready"): steady(1)}
    ),
    "LLMTrainNodeFailures": AlertCase(
        {
            of_operator("llmtrain_operator_failures_total", reason="NodeLost"): (
                f"0x{SAMPLES - 20} 1x5 2x5 4x10"
            )
        },
        {"reason": "NodeLost"},
    ),
}

OPERATOR_CASES = {
    "LLMTrainOperatorDown": AlertCase({of_operator("llmtrain_operator_leader"): steady(0)}),
    "LLMTrainTwoLeaders": AlertCase(
        {
            of_operator(
                "llmtrain_operator_leader", pod=pod, instance=pod, watch_namespace="team-b"
            ): steady(1)
            for pod in ("operator-b-0", "operator-b-1")
        },
        {"watch_namespace": "team-b"},
    ),
    "LLMTrainOperatorRestarts": AlertCase(
        {of_operator("process_start_time_seconds"): (f"1x{SAMPLES - 15} 13000x5 13600x5 14200x5")},
        {"pod": "operator-0"},
    ),
    "LLMTrainInformerStale": AlertCase(
        {of_operator("llmtrain_operator_informer_staleness_seconds", informer="pods"): steady(600)},
        {"informer": "pods"},
    ),
    "LLMTrainObjectsUnreadable": AlertCase(
        {of_operator("llmtrain_operator_unreadable_objects", informer="jobs"): steady(2)},
        {"informer": "jobs"},
    ),
    "LLMTrainApiErrors": AlertCase(
        {of_operator("llmtrain_operator_api_requests_total", code="503"): growing(20)}
    ),
    "LLMTrainReconcileSlow": AlertCase(_buckets("reconcile")),
    "LLMTrainSchedulerSlow": AlertCase(_buckets("placement")),
}

CASES = {**JOB_CASES, **NETWORK_CASES, **FLEET_CASES, **OPERATOR_CASES}
