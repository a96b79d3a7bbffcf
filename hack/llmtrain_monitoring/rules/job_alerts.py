"""Alerts about one training job: progress, speed, checkpoints and learning."""

from llmtrain_monitoring.promql import JOB
from llmtrain_monitoring.rules.model import Alert, RuleGroup, Severity

_NAME = "{{ $labels.namespace }}/{{ $labels.llmtrain_job }}"
_STARTED = "llmtrain_operator_job_phase"


def _usual(recorded: str) -> str:
    """Return the median of a recorded value over the six hours before the last ten minutes."""
    return f"quantile_over_time(0.5, {recorded}[6h] offset 10m)"


_PROGRESS = (
    Alert(
        "LLMTrainStepStalled",
        Severity.CRITICAL,
        f"time() - max by ({JOB}) (llmtrain_last_step_timestamp_seconds) > 600 "
        f"and on ({JOB}) (max by ({JOB}) (llmtrain_step) < "
        f"on ({JOB}) max by ({JOB}) (llmtrain_total_steps))",
        f"{_NAME} makes no progress.",
        "No step has ended for {{ $value | humanizeDuration }}. The GPUs of the job are held "
        "without training.",
        hold="5m",
    ),
    Alert(
        "LLMTrainJobStartsSlowly",
        Severity.WARNING,
        f'max by (namespace, job) ({_STARTED}{{phase="Starting"}}) == 1',
        "{{ $labels.namespace }}/{{ $labels.job }} does not start.",
        "The job has nodes, but not all of its pods train.",
        hold="30m",
    ),
    Alert(
        "LLMTrainJobFailed",
        Severity.WARNING,
        f'max by (namespace, job) ({_STARTED}{{phase="Failed"}}) == 1 unless '
        f'max by (namespace, job) ({_STARTED}{{phase="Failed"}} offset 1h) == 1',
        "{{ $labels.namespace }}/{{ $labels.job }} has failed.",
        "The job failed within the last hour and is not started again.",
    ),
    Alert(
        "LLMTrainRestartLoop",
        Severity.CRITICAL,
        f"max by ({JOB}) (changes(llmtrain_restarts_total[1h])) >= 3",
        f"{_NAME} restarts again and again.",
        "The ranks were restarted in place {{ $value }} times within an hour.",
    ),
    Alert(
        "LLMTrainGangRestartLoop",
        Severity.CRITICAL,
        f"count by ({JOB}) (count by ({JOB}, attempt) (last_over_time(llmtrain_job_info[1h]))) > 3",
        f"{_NAME} is started again and again.",
        "The operator started {{ $value }} attempts within an hour.",
    ),
    Alert(
        "LLMTrainMetricsMissing",
        Severity.WARNING,
        'max by (namespace, job) (llmtrain_operator_job_phase{phase="Running"} == 1) '
        "unless on (namespace, job) max by (namespace, job) "
        '(label_replace(llmtrain_step_seconds_count, "job", "$1", "llmtrain_job", "(.+)"))',
        "{{ $labels.namespace }}/{{ $labels.job }} runs without metrics.",
        "Prometheus has no series of the job's pods, so no alert about the job can fire.",
        hold="15m",
    ),
)

_SPEED = (
    Alert(
        "LLMTrainStepSlowerThanUsual",
        Severity.WARNING,
        f"llmtrain_job:step_seconds:mean5m > 1.3 * {_usual('llmtrain_job:step_seconds:mean5m')}",
        f"Steps of {_NAME} are slower than usual.",
        "A step takes {{ $value | humanizeDuration }}, 1.3 times the median of six hours.",
        hold="15m",
    ),
    Alert(
        "LLMTrainSlowerThanPlanned",
        Severity.INFO,
        "llmtrain_job:step_plan:ratio5m > 2",
        f"{_NAME} is slower than planned.",
        'A step takes {{ printf "%.1f" $value }} times as long as the plan says.',
        hold="30m",
    ),
    Alert(
        "LLMTrainLowMFU",
        Severity.WARNING,
        f"llmtrain_job:mfu:max < 0.5 * {_usual('llmtrain_job:mfu:max')}",
        f"MFU of {_NAME} has dropped.",
        "MFU is {{ $value | humanizePercentage }}, less than half of the median of six hours.",
        hold="15m",
    ),
    Alert(
        "LLMTrainGpuIdle",
        Severity.WARNING,
        "avg by (namespace, llmtrain_job, node, pod, gpu) "
        '(avg_over_time(llmtrain_gpu_utilization_ratio{source="nvml"}[30m])) < 0.3',
        f"GPU {{{{ $labels.gpu }}}} on {{{{ $labels.node }}}} of {_NAME} is idle.",
        "It was busy {{ $value | humanizePercentage }} of the last 30 minutes.",
        hold="15m",
    ),
    Alert(
        "LLMTrainDataBound",
        Severity.WARNING,
        "llmtrain_job:data:ratio5m > 0.2",
        f"{_NAME} waits for data.",
        "{{ $value | humanizePercentage }} of a step is spent reading data.",
        hold="15m",
    ),
)

_CHECKPOINTS = (
    Alert(
        "LLMTrainCheckpointTooOld",
        Severity.WARNING,
        "changes(llmtrain_job:checkpoint_last_step:max[2h]) == 0 "
        "and llmtrain_job:checkpoint_last_step:max offset 2h >= 0 "
        f"and on ({JOB}) delta(llmtrain_job:step:max[10m]) > 0",
        f"{_NAME} has saved no checkpoint for two hours.",
        "The job trains, but a failure now loses all steps since its newest checkpoint.",
        hold="10m",
    ),
    Alert(
        "LLMTrainCheckpointFailing",
        Severity.WARNING,
        f"max by ({JOB}) (increase(llmtrain_checkpoint_failures_total[1h])) > 0",
        f"{_NAME} cannot write checkpoints.",
        "At least one checkpoint of the last hour could not be written.",
    ),
    Alert(
        "LLMTrainLossNotFalling",
        Severity.WARNING,
        "avg_over_time(llmtrain_job:loss:max[30m]) > 1.5 * "
        "min_over_time(llmtrain_job:loss:max[6h])",
        f"The loss of {_NAME} has risen.",
        "The mean loss of 30 minutes is {{ $value }}, 1.5 times the minimum of six hours.",
        hold="15m",
    ),
)

JOB_ALERTS = RuleGroup("llmtrain.job.alerts", (*_PROGRESS, *_SPEED, *_CHECKPOINTS))
