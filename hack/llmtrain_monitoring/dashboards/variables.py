"""Variables that the dashboards share."""

from llmtrain_monitoring.panels import Variable

_STEPS = "llmtrain_step_seconds_count"

NAMESPACE = Variable("namespace", "Namespace", f"label_values({_STEPS}, namespace)")
TRAINING_JOB_NAME = Variable(
    "llmtrain_job",
    "Job",
    f'label_values({_STEPS}{{namespace=~"$namespace"}}, llmtrain_job)',
)
QUEUE_NAMESPACE = Variable(
    "namespace", "Namespace", "label_values(llmtrain_operator_job_phase, namespace)"
)
FABRIC_LEVEL = Variable(
    "level",
    "Level",
    "label_values(llmtrain_operator_gpus, level)",
    regex="/.+/",
    multiple=False,
)
POD_LEVEL = Variable(
    "level",
    "Level",
    "label_names(llmtrain_leaf:collective_transfer_seconds:mean5m)",
    regex="/(?<value>level_(?<text>.+))/",
    multiple=False,
)
"""The labels of the topology: which ones exist depends on the levels of the Fabric."""
