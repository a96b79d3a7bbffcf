"""The PodDisruptionBudget of a running gang."""

from __future__ import annotations

from typing import Any

from llmtrain_operator.manifests.names import JobIdentity

Object = dict[str, Any]


def make_disruption_budget(identity: JobIdentity, pods: int) -> Object:
    """Return a budget that permits no eviction of a gang of this many pods.

    With `maxUnavailable: 0` the disruption controller would ask for the scale of the job, which one
    without `workers.nodes` does not have.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": identity.metadata(identity.name),
        "spec": {"minAvailable": pods, "selector": {"matchLabels": identity.selector()}},
    }
