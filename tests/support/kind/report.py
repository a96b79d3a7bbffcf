"""What a person would look at first when a test in the cluster has failed."""

from __future__ import annotations

from llmtrain_kind.cluster import KindCluster
from llmtrain_kind.kubectl import KubectlError
from tests.support.kind.release import SYSTEM

EVERYWHERE = "--all-namespaces"
COMMANDS = (
    ("get", "nodes", "--output=wide"),
    ("get", "llmtrainingjobs", EVERYWHERE, "--output=yaml"),
    ("get", "pods", EVERYWHERE, "--output=wide"),
    ("get", "events", EVERYWHERE, "--sort-by=.lastTimestamp"),
    ("logs", "-n", SYSTEM, "--selector=app.kubernetes.io/component=operator", "--tail=60"),
)
LINES = 120


def report(cluster: KindCluster) -> str:
    """Return the state of the cluster as text."""
    parts = []
    for command in COMMANDS:
        try:
            text = cluster.kubectl(*command, seconds=60)
        except (KubectlError, TimeoutError) as error:
            text = str(error)
        parts.append(f"$ kubectl {' '.join(command)}\n" + "\n".join(text.splitlines()[-LINES:]))
    return "\n\n".join(parts)
