"""Alerts about collectives, links and stragglers."""

from llmtrain_monitoring.promql import JOB
from llmtrain_monitoring.rules.model import Alert, RuleGroup, Severity

_NAME = "{{ $labels.namespace }}/{{ $labels.llmtrain_job }}"
_GROUP = "group {{ $labels.group }}"
_TRANSFER = "llmtrain_job:collective_transfer_seconds:mean5m"
_PROBE = "llmtrain_probe_bus_bandwidth_bytes_per_second"
_RANK = "* on (namespace, pod, gpu) group_left (rank) llmtrain_rank_info"

NETWORK_ALERTS = RuleGroup(
    "llmtrain.network.alerts",
    (
        Alert(
            "LLMTrainCollectiveSlow",
            Severity.WARNING,
            f"{_TRANSFER} > 1.5 * quantile_over_time(0.5, {_TRANSFER}[6h] offset 10m)",
            f"Collectives of {_NAME}, {_GROUP}, are slower than usual.",
            "The mean transfer, without waiting for slow ranks, takes "
            "{{ $value | humanizeDuration }}, 1.5 times the median of six hours.",
            hold="10m",
        ),
        Alert(
            "LLMTrainCollectiveSlowerThanPlanned",
            Severity.INFO,
            "llmtrain_job:collective_plan:ratio5m > 3",
            f"Collectives of {_NAME}, {_GROUP}, are slower than planned.",
            'They take {{ printf "%.1f" $value }} times as long as the plan says for this '
            "placement.",
            hold="30m",
        ),
        Alert(
            "LLMTrainUplinkCongested",
            Severity.WARNING,
            "min without (namespace, llmtrain_job, group) (llmtrain_leaf:collective_plan:ratio5m "
            f"and on ({JOB}, group) (llmtrain_job:group_leaves:max > 1)) > 3",
            "The uplink of a leaf domain is congested.",
            "Every job whose groups cross the uplink of this domain needs at least "
            '{{ printf "%.1f" $value }} times the planned time. The domain is in the labels whose '
            "name begins with level.",
            hold="15m",
        ),
        Alert(
            "LLMTrainProbeBandwidthDropped",
            Severity.WARNING,
            f"min by ({JOB}, group, node) ({_PROBE}) < 0.7 * min by ({JOB}, group, node) "
            f"(quantile_over_time(0.5, {_PROBE}[6h] offset 10m))",
            f"The network of {_NAME} on {{{{ $labels.node }}}}, {_GROUP}, has slowed down.",
            "The probe, an all-reduce of fixed size, reaches {{ $value | humanize }}B/s, less than "
            "70 % of its median of six hours.",
            hold="10m",
        ),
        Alert(
            "LLMTrainStraggler",
            Severity.WARNING,
            f"(avg_over_time(llmtrain_straggler_score[10m]) < 0.9) {_RANK}",
            f"Rank {{{{ $labels.rank }}}} of {_NAME} on {{{{ $labels.node }}}} is slow.",
            "It has {{ $value | humanizePercentage }} of the speed of the fastest rank with the "
            "same work, and all ranks wait for it.",
            hold="10m",
        ),
        Alert(
            "LLMTrainWaitShareHigh",
            Severity.INFO,
            "llmtrain_job:collective_wait:ratio5m > 0.5",
            f"Ranks of {_NAME}, {_GROUP}, wait for each other.",
            "{{ $value | humanizePercentage }} of the time in collectives is waiting for the last "
            "rank.",
            hold="30m",
        ),
    ),
)
