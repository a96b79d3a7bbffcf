"""Foreign pods reach the operator by another watch than the pods of jobs, so in any order."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_operator.controller import Controller
from llmtrain_operator.kube.api import Item

pytestmark = pytest.mark.unit

REFUSED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available: 1 Insufficient cpu",
    "lastTransitionTime": "2026-01-01T12:00:00Z",
}


def raw_pod(uid: str, node: str = "", pinned: str = "", **status: Any) -> dict[str, Any]:
    field = {"key": "metadata.name", "operator": "In", "values": [pinned]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    return {
        "metadata": {"uid": uid, "name": uid, "namespace": "ns", "resourceVersion": "1"},
        "spec": {"nodeName": node, "containers": [], **({"affinity": affinity} if pinned else {})},
        "status": {"phase": "Running" if node else "Pending", **status},
    }


def of_job(job: str, pod: dict[str, Any]) -> Item:
    tags = {labels.JOB_UID: job, labels.ATTEMPT: "0", labels.NODE_INDEX: "0"}
    return Item({**pod, "metadata": {**pod["metadata"], "labels": tags}})


def test_a_job_looks_again_when_a_foreign_pod_takes_the_node_of_its_refused_pod(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would look again after five seconds, although the cause is known at once."""
    pods, foreign = controller.informers.pods, controller.informers.foreign_pods
    pods._upsert(of_job("refused", raw_pod("a", pinned="n0", conditions=[REFUSED])))
    pods._upsert(of_job("elsewhere", raw_pod("b", pinned="n1", conditions=[REFUSED])))
    pods._upsert(of_job("new", raw_pod("c", pinned="n0")))
    pods._upsert(of_job("running", raw_pod("d", "n0")))
    woken: list[str] = []
    monkeypatch.setattr(controller, "wake", woken.append)
    foreign._upsert(Item(raw_pod("x", "n0")))
    assert woken == ["refused"]
    foreign._remove("x")
    assert woken == ["refused"], "kube-scheduler tries the pod again"
