"""The rules of the chart, in the files that they are written to."""

from llmtrain_monitoring.rules.fleet_alerts import FLEET_ALERTS
from llmtrain_monitoring.rules.job_alerts import JOB_ALERTS
from llmtrain_monitoring.rules.model import Alert, Recording
from llmtrain_monitoring.rules.network_alerts import NETWORK_ALERTS
from llmtrain_monitoring.rules.operator_alerts import OPERATOR_ALERTS
from llmtrain_monitoring.rules.recording import FLEET, JOBS, NETWORK, OPERATOR

RULE_FILES = {
    "recording": (JOBS, NETWORK, FLEET, OPERATOR),
    "alerts": (JOB_ALERTS, NETWORK_ALERTS, FLEET_ALERTS, OPERATOR_ALERTS),
}
RULES = tuple(rule for groups in RULE_FILES.values() for group in groups for rule in group.rules)
RECORDINGS = tuple(rule for rule in RULES if isinstance(rule, Recording))
ALERTS = tuple(rule for rule in RULES if isinstance(rule, Alert))
