"""The dashboard of the operator's own work."""

from llmtrain_monitoring.panels import (
    GREEN,
    ORANGE,
    RED,
    DashboardPage,
    PanelRow,
    Query,
    series,
    stat,
    table,
)
from llmtrain_monitoring.promql import mean, quantile

_RATE = "$__rate_interval"
_OPERATOR_PROCESS = "and on (namespace, pod, instance) llmtrain_operator_build_info"


def _quantiles(metric: str) -> tuple[Query, ...]:
    return (
        Query(mean(metric, "pod", _RATE), "mean {{pod}}"),
        Query(quantile(0.5, metric, _RATE), "median"),
        Query(quantile(0.99, metric, _RATE), "99th percentile"),
    )


_STATE = PanelRow(
    "State",
    (
        stat(
            "Leaders",
            "Most replicas that hold one lease: exactly one.",
            "none",
            Query("max(sum by (watch_namespace) (llmtrain_operator_leader))", "leaders"),
            (None, RED),
            (1, GREEN),
            (2, RED),
            decimals=0,
        ),
        stat(
            "Errors of the API server",
            "Share of requests without a response, with 429, or with a server error.",
            "percentunit",
            Query("llmtrain_operator:api_errors:ratio5m", "errors"),
            (None, GREEN),
            (0.01, ORANGE),
            (0.05, RED),
        ),
        stat(
            "Slowest informer",
            "Seconds since the last response of the API server to the slowest informer.",
            "s",
            Query("max(llmtrain_operator_informer_staleness_seconds)", "stale"),
            (None, GREEN),
            (180, ORANGE),
            (420, RED),
        ),
        stat(
            "Uptime",
            "Time since the leader has started.",
            "s",
            Query(
                "time() - max(process_start_time_seconds and on (namespace, pod, instance) "
                "(llmtrain_operator_leader == 1))",
                "uptime",
            ),
        ),
        stat(
            "Jobs",
            "Jobs that the operator knows.",
            "none",
            Query("sum(max by (phase, watch_namespace) (llmtrain_operator_jobs))", "jobs"),
            decimals=0,
        ),
        table(
            "Version",
            "Replicas and their versions.",
            "none",
            Query("max by (pod, version) (llmtrain_operator_build_info)"),
            width=4,
            height=4,
            names=True,
        ),
    ),
)

_WORK = PanelRow(
    "Work",
    (
        series(
            "Reconcile",
            "Time of one reconcile of a job, requests included.",
            "s",
            *_quantiles("llmtrain_operator_reconcile_seconds"),
            minimum=0,
        ),
        series(
            "Cycle of the scheduler",
            "Time of one decision about all waiting jobs.",
            "s",
            *_quantiles("llmtrain_operator_placement_seconds"),
            minimum=0,
        ),
        series(
            "Reconciles and cycles",
            "Reconciles of jobs and decisions of the scheduler, per second.",
            "ops",
            Query(f"sum(rate(llmtrain_operator_reconcile_seconds_count[{_RATE}]))", "reconciles"),
            Query(f"sum(rate(llmtrain_operator_placement_seconds_count[{_RATE}]))", "cycles"),
            minimum=0,
        ),
        series(
            "Recovery",
            "Mean time from a failure to the running gang within the last hour, by action.",
            "s",
            Query(
                mean("llmtrain_operator_recovery_seconds", "action", "1h"),
                "{{action}}",
                'label_replace(vector(0), "action", "none", "", "")',
            ),
            minimum=0,
        ),
    ),
)

_API = PanelRow(
    "API server",
    (
        series(
            "Requests",
            "Requests per second by verb and resource.",
            "reqps",
            Query(
                f"sum by (verb, resource) (rate(llmtrain_operator_api_requests_total[{_RATE}]))",
                "{{verb}} {{resource}}",
            ),
            minimum=0,
        ),
        series(
            "Responses by code",
            "Code 0: no response.",
            "reqps",
            Query(
                f"sum by (code) (rate(llmtrain_operator_api_requests_total[{_RATE}]))", "{{code}}"
            ),
            stacked=True,
            minimum=0,
        ),
        series(
            "Events",
            "Events that the informers receive per second.",
            "ops",
            Query(
                f"sum by (informer) (rate(llmtrain_operator_informer_events_total[{_RATE}]))",
                "{{informer}}",
            ),
            minimum=0,
        ),
        series(
            "Informer staleness",
            "Seconds since the last response of the API server. It grows up to the interval of "
            "bookmarks while nothing changes.",
            "s",
            Query(
                "max by (informer) (llmtrain_operator_informer_staleness_seconds)", "{{informer}}"
            ),
            minimum=0,
        ),
        series(
            "Unreadable objects",
            "Objects whose newest state cannot be read, usually none. The log of the operator has "
            "their UIDs.",
            "none",
            Query("max by (informer) (llmtrain_operator_unreadable_objects)", "{{informer}}"),
            width=24,
            minimum=0,
        ),
    ),
)

_PROCESS = PanelRow(
    "Process",
    (
        series(
            "CPU",
            "Cores in use by each replica.",
            "none",
            Query(f"rate(process_cpu_seconds_total[{_RATE}]) {_OPERATOR_PROCESS}", "{{pod}}"),
            width=8,
            minimum=0,
        ),
        series(
            "Memory",
            "Resident memory of each replica.",
            "bytes",
            Query(f"process_resident_memory_bytes {_OPERATOR_PROCESS}", "{{pod}}"),
            width=8,
            minimum=0,
        ),
        series(
            "Open files",
            "File descriptors of each replica.",
            "none",
            Query(f"process_open_fds {_OPERATOR_PROCESS}", "{{pod}}"),
            width=8,
            minimum=0,
        ),
    ),
)

_PLAN = PanelRow(
    "Plan",
    (
        series(
            "Error of the plan",
            "Measured over planned time of a step, of attempts that were measured within a day.",
            "none",
            Query(quantile(0.5, "llmtrain_operator_plan_error_ratio", "1d"), "median"),
            Query(quantile(0.9, "llmtrain_operator_plan_error_ratio", "1d"), "90th percentile"),
            width=24,
            minimum=0,
        ),
    ),
)

OPERATOR = DashboardPage(
    "llmtrain-operator",
    "llmtrain / Operator",
    "Reconciles, the scheduler, the API server and the process of the operator.",
    (),
    (_STATE, _WORK, _API, _PROCESS, _PLAN),
)
