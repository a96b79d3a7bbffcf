"""Alerts about the operator itself."""

from llmtrain_monitoring.promql import quantile
from llmtrain_monitoring.rules.model import Alert, RuleGroup, Severity

_OF_NAMESPACE = "{{ with $labels.watch_namespace }} of the namespace {{ . }}{{ end }}"
"""The operators of different namespaces have different leases."""
_NO_LEADER = "absent(llmtrain_operator_leader)"
"""With `watchNamespaces`, the chart replaces it by one expression for each of them, because the
series of one operator hide that those of another are gone (`templates/prometheusrule.yaml`)."""

OPERATOR_ALERTS = RuleGroup(
    "llmtrain.operator.alerts",
    (
        Alert(
            "LLMTrainOperatorDown",
            Severity.CRITICAL,
            f"{_NO_LEADER} or max by (watch_namespace) (llmtrain_operator_leader) < 1",
            f"No llmtrain operator leads{_OF_NAMESPACE}.",
            "No replica holds the lease. Running jobs go on, but no job starts, restarts or ends.",
            hold="5m",
        ),
        Alert(
            "LLMTrainTwoLeaders",
            Severity.CRITICAL,
            "sum by (watch_namespace) (llmtrain_operator_leader) > 1",
            f"Several operators hold the lease{_OF_NAMESPACE}.",
            "{{ $value }} processes say that they hold the lease: two installations serve the same "
            "jobs, or a process is frozen.",
            hold="5m",
        ),
        Alert(
            "LLMTrainOperatorRestarts",
            Severity.WARNING,
            "max by (namespace, pod) (changes(process_start_time_seconds[1h]) "
            "and on (namespace, pod, instance) llmtrain_operator_build_info) >= 3",
            "The operator {{ $labels.namespace }}/{{ $labels.pod }} restarts again and again.",
            "It was started {{ $value }} times within an hour.",
        ),
        Alert(
            "LLMTrainInformerStale",
            Severity.CRITICAL,
            "max by (informer) (llmtrain_operator_informer_staleness_seconds) > 420",
            "The operator does not see changes of {{ $labels.informer }}.",
            "The API server has not answered its watch for {{ $value | humanizeDuration }}.",
            hold="1m",
        ),
        Alert(
            "LLMTrainObjectsUnreadable",
            Severity.WARNING,
            "max by (informer) (llmtrain_operator_unreadable_objects) > 0",
            "The operator cannot read objects of the informer {{ $labels.informer }}.",
            "It cannot read the newest state of {{ $value }} objects, and uses their last readable "
            "one.",
            hold="10m",
        ),
        Alert(
            "LLMTrainApiErrors",
            Severity.WARNING,
            "llmtrain_operator:api_errors:ratio5m > 0.05",
            "The API server fails requests of the operator.",
            "{{ $value | humanizePercentage }} of the requests had no response, were throttled, or "
            "failed in the server.",
            hold="10m",
        ),
        Alert(
            "LLMTrainReconcileSlow",
            Severity.WARNING,
            f"{quantile(0.99, 'llmtrain_operator_reconcile_seconds', '10m')} > 5",
            "Reconciles of jobs are slow.",
            "The 99th percentile is {{ $value | humanizeDuration }}.",
            hold="15m",
        ),
        Alert(
            "LLMTrainSchedulerSlow",
            Severity.WARNING,
            f"{quantile(0.99, 'llmtrain_operator_placement_seconds', '10m')} > 5",
            "Decisions of the scheduler are slow.",
            "The 99th percentile of a cycle is {{ $value | humanizeDuration }}.",
            hold="15m",
        ),
    ),
)
