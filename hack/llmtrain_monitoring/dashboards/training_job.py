"""The dashboard of one training job."""

from llmtrain_monitoring.dashboards.variables import NAMESPACE, TRAINING_JOB_NAME
from llmtrain_monitoring.panels import (
    GREEN,
    ORANGE,
    RED,
    DashboardPage,
    PanelRow,
    Query,
    bars,
    series,
    stat,
    table,
)
from llmtrain_monitoring.promql import (
    JOB,
    JOB_SELECTOR,
    OPERATOR_SELECTOR,
    RANK_SPEED,
    mean,
    rate_sum,
)

_RATE = "$__rate_interval"


def _last(metric: str, matchers: str = "") -> str:
    """Return the last value in the range, so that a job that has ended still shows its own."""
    selector = f"{JOB_SELECTOR},{matchers}" if matchers else JOB_SELECTOR
    return f"max by ({JOB}) (last_over_time({metric}{{{selector}}}[$__range]))"


_STEP_OF_TOTAL = f"{_last('llmtrain_step')} / {_last('llmtrain_total_steps')}"
_CAUSAL = 'convention="causal-attention"'

_OVERVIEW = PanelRow(
    "Overview",
    (
        stat(
            "Phase",
            "Phase of the job, from the operator.",
            "none",
            Query(
                "max by (namespace, job, phase) "
                f"(llmtrain_operator_job_phase{{{OPERATOR_SELECTOR}}})",
                "{{phase}}",
            ),
            names=True,
        ),
        stat("Progress", "Steps done of all steps.", "percentunit", Query(_STEP_OF_TOTAL, "done")),
        stat(
            "Time left",
            "Remaining steps times the time of a step.",
            "s",
            Query(_last("llmtrain_eta_seconds"), "left"),
        ),
        stat(
            "Since the last step",
            "Seconds since rank 0 finished a step. A healthy job stays near its step time.",
            "s",
            Query(
                f"time() - max by ({JOB}) (llmtrain_last_step_timestamp_seconds{{{JOB_SELECTOR}}})",
                "seconds",
            ),
            (None, GREEN),
            (120, ORANGE),
            (600, RED),
        ),
        stat(
            "Current loss",
            "Training loss of the last step, nats per token.",
            "none",
            Query(_last("llmtrain_loss"), "loss"),
            decimals=3,
        ),
        stat(
            "Current tokens per second",
            "Tokens of all ranks.",
            "short",
            Query(rate_sum("llmtrain_tokens_total", JOB, _RATE, JOB_SELECTOR), "tokens/s"),
        ),
        stat(
            "Current MFU",
            "Model FLOPs over the peak of the GPUs; attention counts with its causal half.",
            "percentunit",
            Query(_last("llmtrain_mfu_ratio", _CAUSAL), "MFU"),
        ),
        stat(
            "Restarts in place",
            "Restarts of all ranks in their pods, in this attempt.",
            "none",
            Query(_last("llmtrain_restarts_total"), "restarts"),
            (None, GREEN),
            (1, ORANGE),
            (3, RED),
            decimals=0,
        ),
        stat(
            "Steps since the checkpoint",
            "Steps that a failure now would lose.",
            "none",
            Query(f"{_last('llmtrain_step')} - {_last('llmtrain_checkpoint_last_step')}", "steps"),
            decimals=0,
        ),
        stat(
            "Firing alerts",
            "Alerts of the job that fire now.",
            "none",
            Query(
                f'count(ALERTS{{alertname=~"LLMTrain.+",alertstate="firing",{JOB_SELECTOR}}})',
                "alerts",
                "vector(0)",
            ),
            (None, GREEN),
            (1, RED),
            decimals=0,
        ),
        table(
            "Layout",
            "Parallel layout and model of the job.",
            "none",
            Query(f"max by ({JOB}, layout, model, attempt) (llmtrain_job_info{{{JOB_SELECTOR}}})"),
            width=8,
            height=4,
            names=True,
        ),
    ),
)

_LEARNING = PanelRow(
    "Learning",
    (
        series(
            "Loss",
            "Training loss by step, and the held-out loss before, during and after training.",
            "none",
            Query(f"max by ({JOB}) (llmtrain_loss{{{JOB_SELECTOR}}})", "{{llmtrain_job}} training"),
            Query(
                f"max by ({JOB}, when) (llmtrain_held_out_loss{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}} held-out, {{when}}",
            ),
        ),
        series(
            "Tokens per second",
            "Tokens of all ranks.",
            "short",
            Query(rate_sum("llmtrain_tokens_total", JOB, _RATE, JOB_SELECTOR), "{{llmtrain_job}}"),
            minimum=0,
        ),
        series(
            "Gradient norm",
            "Global norm of the gradients before clipping.",
            "none",
            Query(f"max by ({JOB}) (llmtrain_grad_norm{{{JOB_SELECTOR}}})", "{{llmtrain_job}}"),
            width=8,
        ),
        series(
            "Learning rate",
            "Learning rate of the last step.",
            "sci",
            Query(f"max by ({JOB}) (llmtrain_learning_rate{{{JOB_SELECTOR}}})", "{{llmtrain_job}}"),
            width=8,
        ),
        series(
            "MFU",
            "Model FLOPs over the peak of the GPUs, by convention.",
            "percentunit",
            Query(
                f"max by ({JOB}, convention) (llmtrain_mfu_ratio{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}} {{convention}}",
            ),
            width=8,
            minimum=0,
        ),
    ),
)

_STEP = PanelRow(
    "Step time",
    (
        series(
            "Where the time of a step goes",
            "Mean time of the parts of a step, over all ranks.",
            "s",
            Query(
                mean("llmtrain_step_phase_seconds", f"{JOB}, phase", _RATE, JOB_SELECTOR),
                "{{phase}}",
            ),
            stacked=True,
            minimum=0,
        ),
        series(
            "Measured against planned",
            "Mean and 99th percentile of the time of a step, and the plan's time.",
            "s",
            Query(mean("llmtrain_step_seconds", JOB, _RATE, JOB_SELECTOR), "mean"),
            Query(
                "histogram_quantile(0.99, "
                f"{rate_sum('llmtrain_step_seconds_bucket', f'{JOB}, le', _RATE, JOB_SELECTOR)})",
                "99th percentile",
            ),
            Query(
                f"max by (namespace, job) "
                f"(llmtrain_operator_planned_step_seconds{{{OPERATOR_SELECTOR}}})",
                "planned",
            ),
            minimum=0,
        ),
    ),
)

_GPUS = PanelRow(
    "GPUs",
    (
        bars(
            "Utilization of each GPU",
            "Share of time in which a device was busy.",
            "percentunit",
            Query(
                f"max by ({JOB}, node, gpu) (llmtrain_gpu_utilization_ratio{{{JOB_SELECTOR}}})",
                "{{node}} GPU {{gpu}}",
            ),
            (None, RED),
            (0.3, ORANGE),
            (0.7, GREEN),
            maximum=1,
        ),
        table(
            "Slowest ranks",
            "Speed of a rank relative to the fastest with the same work; 1 is the fastest.",
            "percentunit",
            Query(f"bottomk(10, max by ({JOB}, node, gpu, rank) ({RANK_SPEED}))"),
        ),
        series(
            "Memory",
            "Memory in use, by kind.",
            "bytes",
            Query(
                f"max by ({JOB}, node, gpu, kind) (llmtrain_gpu_memory_bytes{{{JOB_SELECTOR}}})",
                "{{node}} GPU {{gpu}} {{kind}}",
            ),
            width=8,
            minimum=0,
        ),
        series(
            "Activity",
            "Share of time of the multiprocessors, the matrix units and the memory.",
            "percentunit",
            Query(
                f"avg by ({JOB}, unit) (llmtrain_gpu_activity_ratio{{{JOB_SELECTOR}}})", "{{unit}}"
            ),
            width=8,
            minimum=0,
            maximum=1,
        ),
        series(
            "Power",
            "Power of all GPUs of the job.",
            "watt",
            Query(
                rate_sum("llmtrain_gpu_energy_joules_total", JOB, _RATE, JOB_SELECTOR),
                "{{llmtrain_job}}",
            ),
            width=8,
            minimum=0,
        ),
        table(
            "Devices",
            "UUID and model of each GPU, to find it in the metrics of dcgm-exporter.",
            "none",
            Query(
                f"max by ({JOB}, node, gpu, UUID, modelName) (llmtrain_gpu_info{{{JOB_SELECTOR}}})"
            ),
            width=24,
            names=True,
        ),
    ),
)

_CHECKPOINTS = PanelRow(
    "Checkpoints",
    (
        series(
            "Time of a checkpoint",
            "Mean time over the last hour: collecting the state, and writing it.",
            "s",
            Query(
                mean("llmtrain_checkpoint_seconds", f"{JOB}, phase", "1h", JOB_SELECTOR),
                "{{llmtrain_job}} {{phase}}",
            ),
            minimum=0,
        ),
        series(
            "Step and newest checkpoint",
            "The distance between the lines is the work that a failure loses.",
            "none",
            Query(f"max by ({JOB}) (llmtrain_step{{{JOB_SELECTOR}}})", "{{llmtrain_job}} step"),
            Query(
                f"max by ({JOB}) (llmtrain_checkpoint_last_step{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}} checkpoint",
            ),
            minimum=0,
        ),
        series(
            "Failed checkpoints",
            "Checkpoints that could not be written, in this attempt.",
            "none",
            Query(
                f"max by ({JOB}) (llmtrain_checkpoint_failures_total{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}}",
            ),
            minimum=0,
        ),
        series(
            "CPU of the launchers",
            "Cores that the launcher of each pod uses; its ranks are not included.",
            "none",
            Query(
                rate_sum("process_cpu_seconds_total", f"{JOB}, pod", _RATE, JOB_SELECTOR),
                "{{pod}}",
            ),
            minimum=0,
        ),
    ),
)

TRAINING_JOB = DashboardPage(
    "llmtrain-training-job",
    "llmtrain / Training job",
    "Progress, learning, step time, GPUs and checkpoints of a job.",
    (NAMESPACE, TRAINING_JOB_NAME),
    (_OVERVIEW, _LEARNING, _STEP, _GPUS, _CHECKPOINTS),
)
