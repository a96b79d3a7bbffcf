"""Node health: what the conditions, taints and labels of a node say about it.

The table has rows of known node agents and clouds. A row says what to look for, and one of two
strengths: pods avoid the node, or running jobs leave it, too. Nothing else about a node is bad: an
unknown condition has no effect.
"""

from llmtrain_core.node_health.changes import HealthRowError, RowChange, changed_rows, read_changes
from llmtrain_core.node_health.default_rows import DEFAULT_ROWS
from llmtrain_core.node_health.limit import ExclusionLimit, nodes_in_force
from llmtrain_core.node_health.rows import CORDON_ROW, HealthFinding, HealthRow, RowKind, Strength
from llmtrain_core.node_health.table import CORDONED, DEFAULT_TABLE, HealthTable

__all__ = [
    "CORDONED",
    "CORDON_ROW",
    "DEFAULT_ROWS",
    "DEFAULT_TABLE",
    "ExclusionLimit",
    "HealthFinding",
    "HealthRow",
    "HealthRowError",
    "HealthTable",
    "RowChange",
    "RowKind",
    "Strength",
    "changed_rows",
    "nodes_in_force",
    "read_changes",
]
