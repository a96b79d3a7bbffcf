"""The dashboards, one file each."""

from llmtrain_monitoring.dashboards.fleet import FLEET
from llmtrain_monitoring.dashboards.network import NETWORK
from llmtrain_monitoring.dashboards.operator import OPERATOR
from llmtrain_monitoring.dashboards.training_job import TRAINING_JOB

DASHBOARDS = (TRAINING_JOB, NETWORK, FLEET, OPERATOR)
