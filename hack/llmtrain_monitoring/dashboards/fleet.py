"""The dashboard of the whole cluster: GPUs, the queue and goodput."""

from llmtrain_monitoring.dashboards.variables import FABRIC_LEVEL, QUEUE_NAMESPACE
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
from llmtrain_monitoring.promql import quantile

_NAMESPACE = 'namespace=~"$namespace"'
_AT_LEVEL = 'level="$level"'
_WAITING = f"max by (namespace, job, reason) (llmtrain_operator_job_waiting{{{_NAMESPACE}}})"
_TRAINER_JOBS = "max by (namespace, job, phase) (llmtrain_operator_job_phase" + (
    f"{{{_NAMESPACE}}})"
)


def _none(label: str) -> str:
    return f'label_replace(vector(0), "{label}", "none", "", "")'


def _increase(metric: str, by: str) -> Query:
    """Return how often something was counted in the range, by a label."""
    counted = f"round(sum by ({by}) (increase({metric}[$__range]))) > 0"
    return Query(counted, f"{{{{{by}}}}}", _none(by))


_OVERVIEW = PanelRow(
    "Overview",
    (
        stat(
            "GPUs in use",
            "Share of the GPUs of all nodes that jobs use.",
            "percentunit",
            Query("llmtrain:gpus_used:ratio", "used"),
        ),
        stat(
            "Current goodput",
            "GPU time of training that no failure has undone, of all that jobs held in an hour.",
            "percentunit",
            Query("llmtrain:goodput:ratio1h", "goodput"),
            (None, RED),
            (0.8, ORANGE),
            (0.9, GREEN),
        ),
        stat(
            "Waiting jobs",
            "Jobs without a placement.",
            "none",
            Query("max(llmtrain_operator_queue_depth)", "jobs"),
            decimals=0,
        ),
        stat(
            "Current longest wait",
            "Time since the oldest waiting job was created.",
            "s",
            Query("max(llmtrain_operator_oldest_wait_seconds)", "wait"),
            (None, GREEN),
            (3600, ORANGE),
            (43200, RED),
        ),
        stat(
            "Quarantined nodes",
            "Nodes that no job may use, after failures.",
            "none",
            Query("max(llmtrain_operator_quarantined_nodes)", "nodes"),
            (None, GREEN),
            (1, ORANGE),
            decimals=0,
        ),
        stat(
            "Firing alerts",
            "Alerts of the operator and of all jobs.",
            "none",
            Query(
                'count(ALERTS{alertname=~"LLMTrain.+",alertstate="firing"})', "alerts", "vector(0)"
            ),
            (None, GREEN),
            (1, RED),
            decimals=0,
        ),
    ),
)

_CAPACITY = PanelRow(
    "Capacity",
    (
        series(
            "GPUs by state",
            "GPUs of all nodes.",
            "none",
            Query("llmtrain:gpus:sum", "{{state}}"),
            stacked=True,
            minimum=0,
        ),
        series(
            "Nodes by state",
            "Nodes with GPUs.",
            "none",
            Query("max by (state) (llmtrain_operator_nodes)", "{{state}}"),
            stacked=True,
            minimum=0,
        ),
        bars(
            "Free GPUs by domain",
            "GPUs that no job uses or reserves, in each domain of the level.",
            "none",
            Query(
                f'max by (domain) (llmtrain_operator_gpus{{{_AT_LEVEL},state="free"}})',
                "{{domain}}",
                _none("domain"),
            ),
        ),
        table(
            "GPUs by domain and state",
            "GPUs of each domain of the level.",
            "none",
            Query(f"max by (domain, state) (llmtrain_operator_gpus{{{_AT_LEVEL}}})"),
        ),
        series(
            "Largest free block",
            "Most free GPUs in one domain, by level: the largest job that fits into a domain.",
            "none",
            Query("max by (level) (llmtrain_operator_largest_free_block_gpus)", "{{level}}"),
            minimum=0,
        ),
        series(
            "Fragmentation",
            "Share of the free GPUs outside of the largest free block, by level. 0: all free GPUs "
            "are in one domain.",
            "percentunit",
            Query("llmtrain_level:fragmentation:ratio", "{{level}}"),
            minimum=0,
            maximum=1,
        ),
    ),
)

_QUEUE = PanelRow(
    "Queue",
    (
        series(
            "Waiting jobs by reason",
            "Reasons are those of the condition Placed.",
            "none",
            Query(f"count by (reason) ({_WAITING})", "{{reason}}", _none("reason")),
            stacked=True,
            minimum=0,
        ),
        table(
            "Jobs that wait",
            "Jobs without a placement.",
            "none",
            Query(_WAITING, "", _none("job")),
            names=True,
        ),
        series(
            "Time to running",
            "From the creation of a job to its first running gang, of jobs that started within "
            "the last hour.",
            "s",
            Query(quantile(0.5, "llmtrain_operator_time_to_running_seconds", "1h"), "median"),
            Query(
                quantile(0.95, "llmtrain_operator_time_to_running_seconds", "1h"),
                "95th percentile",
            ),
            minimum=0,
        ),
        series(
            "Jobs by phase",
            "All jobs of the selected namespaces.",
            "none",
            Query(f"count by (phase) ({_TRAINER_JOBS})", "{{phase}}"),
            stacked=True,
            minimum=0,
        ),
        series(
            "Preempted and backfilled gangs",
            "Gangs in the last hour.",
            "none",
            Query("sum(increase(llmtrain_operator_preemptions_total[1h]))", "preempted"),
            Query("sum(increase(llmtrain_operator_backfilled_total[1h]))", "backfilled"),
            minimum=0,
        ),
        series(
            "Longest wait",
            "Age of the oldest waiting job.",
            "s",
            Query("max(llmtrain_operator_oldest_wait_seconds)", "oldest"),
            minimum=0,
        ),
    ),
)

_EFFICIENCY = PanelRow(
    "Goodput and placement",
    (
        series(
            "GPU time by state",
            "GPUs whose time goes into each state. Lost is a part of training, undone by failures.",
            "none",
            Query(
                "sum by (state) (rate(llmtrain_operator_gpu_seconds_total[$__rate_interval]))",
                "{{state}}",
            ),
            stacked=True,
            minimum=0,
        ),
        series(
            "Goodput",
            "GPU time of training that no failure has undone, of all that jobs held, over an hour.",
            "percentunit",
            Query("llmtrain:goodput:ratio1h", "goodput"),
            minimum=0,
            maximum=1,
        ),
        bars(
            "Placement score",
            "Time in collectives of a step over the plan's, of the group with the largest ratio. "
            "The plan knows the uplinks that the placement crosses.",
            "none",
            Query(
                "max by (namespace, llmtrain_job) (llmtrain_job:collective_plan:ratio5m"
                f"{{{_NAMESPACE}}})",
                "{{namespace}}/{{llmtrain_job}}",
            ),
            (None, GREEN),
            (1.5, ORANGE),
            (3, RED),
        ),
        bars(
            "Step time over plan",
            "Measured over planned time of a step.",
            "none",
            Query(
                f"llmtrain_job:step_plan:ratio5m{{{_NAMESPACE}}}", "{{namespace}}/{{llmtrain_job}}"
            ),
            (None, GREEN),
            (1.5, ORANGE),
            (3, RED),
        ),
    ),
)

_RESULTS = PanelRow(
    "Results",
    (
        bars(
            "Finished jobs",
            "Jobs that ended in the range, by result.",
            "none",
            _increase("llmtrain_operator_finished_total", "result"),
            width=8,
        ),
        bars(
            "Failed attempts",
            "Attempts that failed in the range, by reason.",
            "none",
            _increase("llmtrain_operator_failures_total", "reason"),
            width=8,
        ),
        bars(
            "Restarted gangs",
            "New attempts in the range, by reason.",
            "none",
            _increase("llmtrain_operator_restarts_total", "reason"),
            width=8,
        ),
    ),
)

FLEET = DashboardPage(
    "llmtrain-fleet",
    "llmtrain / Fleet",
    "GPUs by state and domain, the queue, goodput and results of all jobs.",
    (QUEUE_NAMESPACE, FABRIC_LEVEL),
    (_OVERVIEW, _CAPACITY, _QUEUE, _EFFICIENCY, _RESULTS),
)
