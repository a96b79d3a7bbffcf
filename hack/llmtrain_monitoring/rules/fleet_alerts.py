"""Alerts about the queue and the nodes."""

from llmtrain_monitoring.rules.model import Alert, RuleGroup, Severity

_NAME = "{{ $labels.namespace }}/{{ $labels.job }}"
_WAITING = "llmtrain_operator_job_waiting"
_NODE_REASONS = "NodeLost|StartupTimeout"

FLEET_ALERTS = RuleGroup(
    "llmtrain.fleet.alerts",
    (
        Alert(
            "LLMTrainJobWaitingTooLong",
            Severity.WARNING,
            f"max by (namespace, job) ({_WAITING}) == 1",
            f"{_NAME} has waited for twelve hours.",
            "The job has no placement. Its condition Placed has the reason.",
            hold="12h",
            keep="10m",
        ),
        Alert(
            "LLMTrainJobCannotStart",
            Severity.WARNING,
            f"max by (namespace, job, reason) ({_WAITING}"
            '{reason=~"FabricNotFound|InvalidFabric|UnknownLevel|PriorityClassNotFound|'
            "NoMatchingNodes|NetworkMismatch|ObjectNotFound|InsufficientDevices|"
            'DeviceClassNotFound|DeviceClassNotSupported|NotServed"}) == 1',
            f"{_NAME} cannot start: {{{{ $labels.reason }}}}.",
            "No job that ends will change this: the job or the cluster has to be changed.",
            hold="15m",
        ),
        Alert(
            "LLMTrainQueueStuck",
            Severity.CRITICAL,
            "max(llmtrain_operator_queue_depth) > 0 and "
            "sum(increase(llmtrain_operator_placement_seconds_count[30m])) == 0",
            "The queue is not processed.",
            "{{ $value }} jobs wait, and the scheduler has made no decision for 30 minutes.",
            hold="5m",
        ),
        Alert(
            "LLMTrainFragmented",
            Severity.INFO,
            "llmtrain_level:fragmentation:ratio > 0.5 and on() "
            f'(count({_WAITING}{{reason="DomainTooSmall"}}) > 0)',
            "Free GPUs are scattered over the domains of the level {{ $labels.level }}.",
            "{{ $value | humanizePercentage }} of the free GPUs are outside of the largest free "
            "block, and jobs wait for a domain with enough free nodes.",
            hold="1h",
        ),
        Alert(
            "LLMTrainGoodputLow",
            Severity.WARNING,
            "llmtrain:goodput:ratio1h < 0.7",
            "Jobs hold GPUs without training.",
            "{{ $value | humanizePercentage }} of the GPU time that jobs held in the last hour "
            "went into training.",
            hold="1h",
        ),
        Alert(
            "LLMTrainNodesQuarantined",
            Severity.INFO,
            "max(llmtrain_operator_quarantined_nodes) > 0",
            "Nodes are in quarantine.",
            "{{ $value }} nodes failed repeatedly, and no job may use them.",
            hold="1h",
        ),
        Alert(
            "LLMTrainNodesUnready",
            Severity.WARNING,
            'max(llmtrain_operator_nodes{state="unready"}) > 0',
            "Nodes with GPUs are not ready.",
            "{{ $value }} nodes with GPUs are not ready.",
            hold="15m",
        ),
        Alert(
            "LLMTrainNodeFailures",
            Severity.WARNING,
            "round(sum by (reason) (increase(llmtrain_operator_failures_total"
            f'{{reason=~"{_NODE_REASONS}"}}[1h]))) >= 3',
            "Nodes fail often: {{ $labels.reason }}.",
            "{{ $value }} attempts of jobs failed within an hour because of a node.",
        ),
    ),
)
