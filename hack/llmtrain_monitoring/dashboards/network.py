"""The dashboard of the network: collectives by group, by domain and by rank."""

from llmtrain_monitoring.dashboards.variables import NAMESPACE, POD_LEVEL, TRAINING_JOB_NAME
from llmtrain_monitoring.panels import (
    GREEN,
    ORANGE,
    RED,
    DashboardPage,
    PanelRow,
    Query,
    bars,
    series,
    table,
)
from llmtrain_monitoring.promql import JOB, JOB_SELECTOR, RANK_SPEED, TENSORS

_RATE = "$__rate_interval"
_GROUP = f"{JOB}, group"
_LEAF = f"llmtrain_leaf:collective_transfer_seconds:mean5m{{{JOB_SELECTOR}}}"
_CROSSING = f"on ({_GROUP}) (llmtrain_job:group_leaves:max{{{JOB_SELECTOR}}} > 1)"
_BY_DOMAIN = f"max by ({_GROUP}, $level) ({_LEAF} and {_CROSSING})"
_SLOWEST = f"topk by ({_GROUP}) (1, {_BY_DOMAIN})"
_PAIRS = (
    f"max by ({_GROUP}, domain, slowest_domain) ("
    f'label_replace({_BY_DOMAIN} unless {_SLOWEST}, "domain", "$1", "$level", "(.+)") * 0 '
    f"+ on ({_GROUP}) group_left (slowest_domain) "
    f'label_replace({_SLOWEST}, "slowest_domain", "$1", "$level", "(.+)"))'
)
_UPLINKS = f"min by ($level) (llmtrain_leaf:collective_plan:ratio5m and {_CROSSING})"

_GROUPS = PanelRow(
    "Collectives by group",
    (
        series(
            "Median and 99th percentile",
            "Time of the last 256 collectives of the slowest pod, including the wait.",
            "s",
            Query(
                f"max by ({_GROUP}, op, quantile) "
                f"(llmtrain_collective_recent_seconds{{{JOB_SELECTOR}}})",
                "{{group}} {{op}} {{quantile}}",
            ),
            minimum=0,
        ),
        series(
            "Transfer time",
            "Mean time of a collective without the wait for the last rank: this is the network.",
            "s",
            Query(
                f"llmtrain_job:collective_transfer_seconds:mean5m{{{JOB_SELECTOR}}}",
                "{{llmtrain_job}} {{group}}",
            ),
            minimum=0,
        ),
        series(
            "Share of waiting",
            "Share of the time in collectives in which ranks wait for the last one: a straggler, "
            "not the network.",
            "percentunit",
            Query(
                f"llmtrain_job:collective_wait:ratio5m{{{JOB_SELECTOR}}}",
                "{{llmtrain_job}} {{group}}",
            ),
            minimum=0,
            maximum=1,
        ),
        series(
            "Bus bandwidth",
            "Bandwidth of the last sampled step in the slowest pod.",
            "Bps",
            Query(
                f"min by ({_GROUP}, op) "
                f"(llmtrain_bus_bandwidth_bytes_per_second{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}} {{group}} {{op}}",
            ),
            minimum=0,
        ),
        series(
            "Bytes of a step",
            "Payload of the collectives of a step, per rank.",
            "bytes",
            Query(
                f"sum by ({_GROUP}) "
                f"(rate(llmtrain_sampled_collective_bytes_total{{{JOB_SELECTOR}}}[5m])) "
                f"/ on ({JOB}) group_left () sum by ({JOB}) "
                f"(rate(llmtrain_sampled_steps_total{{{JOB_SELECTOR}}}[5m]))",
                "{{llmtrain_job}} {{group}}",
            ),
            minimum=0,
        ),
        series(
            "Network probe",
            "Bus bandwidth of an all-reduce of fixed size in the slowest pod: it depends on "
            "nothing but the network.",
            "Bps",
            Query(
                f"min by ({_GROUP}) "
                f"(llmtrain_probe_bus_bandwidth_bytes_per_second{{{JOB_SELECTOR}}})",
                "{{llmtrain_job}} {{group}}",
            ),
            minimum=0,
        ),
    ),
)

_PLAN = PanelRow(
    "Predicted against measured",
    (
        bars(
            "Measured over planned",
            "Time in collectives of a step over the plan's, by group. Much more than 1: the "
            "network is slower than its specification, or shared.",
            "none",
            Query(
                f"llmtrain_job:collective_plan:ratio5m{{{JOB_SELECTOR}}}",
                "{{llmtrain_job}} {{group}}",
            ),
            (None, GREEN),
            (1.5, ORANGE),
            (3, RED),
        ),
        series(
            "Time in collectives of a step",
            "Measured and planned, by group.",
            "s",
            Query(
                f"llmtrain_job:collective_seconds_per_step:mean5m{{{JOB_SELECTOR}}}",
                "{{llmtrain_job}} {{group}} measured",
            ),
            Query(
                "max by (namespace, job, group) (llmtrain_operator_planned_collective_seconds"
                '{namespace=~"$namespace",job=~"$llmtrain_job"})',
                "{{job}} {{group}} planned",
            ),
            minimum=0,
        ),
    ),
)

_DOMAINS = PanelRow(
    "Domains",
    (
        series(
            "Transfer time by domain",
            "Mean transfer time of the pods in a domain, of groups that cross leaf domains.",
            "s",
            Query(_BY_DOMAIN, "{{$level}} {{llmtrain_job}} {{group}}"),
            minimum=0,
        ),
        table(
            "Pairs of domains",
            "Each domain of a job with the slowest domain of the same group. A slow link shows in "
            "all pairs that use it.",
            "s",
            Query(_PAIRS),
        ),
        bars(
            "Congested uplinks",
            "The smallest ratio of measured to planned time of all jobs whose groups cross the "
            "uplink of a domain. One fast job clears a domain, so what remains is the uplink.",
            "none",
            Query(_UPLINKS, "{{$level}}"),
            (None, GREEN),
            (1.5, ORANGE),
            (3, RED),
        ),
        bars(
            "Probe by domain",
            "Bus bandwidth of the network probe in the slowest pod of a domain.",
            "Bps",
            Query(
                f"min by (group, $level) "
                f"(llmtrain_probe_bus_bandwidth_bytes_per_second{{{JOB_SELECTOR}}})",
                "{{$level}} {{group}}",
            ),
        ),
        table(
            "Groups that cross leaf domains",
            "Largest number of leaf domains that one group of a kind spans.",
            "none",
            Query(
                f"sort_desc(max by ({_GROUP}) (llmtrain_job:group_leaves:max{{{JOB_SELECTOR}}}))"
            ),
        ),
        table(
            "Domains of the jobs",
            "Ranks of each job in each domain.",
            "none",
            Query(f"count by ({JOB}, $level) (llmtrain_rank_info{{{JOB_SELECTOR}}})"),
        ),
    ),
)

_STRAGGLERS = PanelRow(
    "Stragglers",
    (
        series(
            "Speed of the slowest ranks",
            "Speed relative to the fastest rank with the same work.",
            "percentunit",
            Query(f"bottomk(5, {RANK_SPEED})", "{{node}} rank {{rank}}"),
            width=8,
            maximum=1,
        ),
        series(
            "Wait by pod",
            "Share of the time in collectives in which a pod waits. The pod that waits least "
            "arrives last.",
            "percentunit",
            Query(
                f"sum by ({JOB}, node, pod) "
                f"(rate(llmtrain_collective_wait_seconds_sum{{{JOB_SELECTOR},{TENSORS}}}[5m])) "
                f"/ sum by ({JOB}, node, pod) "
                f"(rate(llmtrain_collective_seconds_sum{{{JOB_SELECTOR}}}[5m]))",
                "{{node}} {{pod}}",
            ),
            width=8,
            minimum=0,
            maximum=1,
        ),
        series(
            "Step time by pod",
            "Mean time of a step. Ranks of a job wait for each other, so all pods are alike.",
            "s",
            Query(
                f"sum by ({JOB}, node, pod) "
                f"(rate(llmtrain_step_seconds_sum{{{JOB_SELECTOR}}}[{_RATE}])) "
                f"/ sum by ({JOB}, node, pod) "
                f"(rate(llmtrain_step_seconds_count{{{JOB_SELECTOR}}}[{_RATE}]))",
                "{{node}} {{pod}}",
            ),
            width=8,
            minimum=0,
        ),
        table(
            "Ranks by speed",
            "The slowest ranks with their coordinates, node and GPU.",
            "percentunit",
            Query(f"bottomk(20, {RANK_SPEED})"),
            width=24,
        ),
    ),
)

_ADAPTERS = PanelRow(
    "Network adapters",
    (
        series(
            "Data sent",
            "Bytes sent by each InfiniBand or RoCE port, from node_exporter.",
            "Bps",
            Query(
                "sum by (instance, device) "
                f"(rate(node_infiniband_port_data_transmitted_bytes_total[{_RATE}]))",
                "{{instance}} {{device}}",
            ),
            minimum=0,
        ),
        series(
            "Waiting to send",
            "Ticks in which a port had data but no credit to send: congestion behind the port.",
            "none",
            Query(
                "sum by (instance, device) "
                f"(rate(node_infiniband_port_transmit_wait_total[{_RATE}]))",
                "{{instance}} {{device}}",
            ),
            minimum=0,
        ),
    ),
)

NETWORK = DashboardPage(
    "llmtrain-network",
    "llmtrain / Network",
    "Collectives by parallel group, against the plan, by topology domain and by rank.",
    (NAMESPACE, TRAINING_JOB_NAME, POD_LEVEL),
    (_GROUPS, _PLAN, _DOMAINS, _STRAGGLERS, _ADAPTERS),
)
