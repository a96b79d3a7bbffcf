"""What the end of a pod is evidence of: the node, the job, or a disruption. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.cache.records import pod_record
from llmtrain_operator.policies.failure_classification import classify

pytestmark = pytest.mark.unit

TARGET = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
CRASH = {"terminated": {"exitCode": 137, "reason": "Error"}}
RAN = {"containerStatuses": [{"name": "trainer", "state": CRASH}]}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
WAITS = {"containerStatuses": [{"name": "trainer", "state": CREATING}]}
INIT_RAN = {"initContainerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]}


def raw_pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"uid": "p", "name": "job-0-0", "namespace": "ns"},
        "spec": {"nodeName": "n0", "containers": []},
        "status": {"phase": "Failed", **status},
    }


ENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "device plugin": (
        {"reason": "UnexpectedAdmissionError", "message": "Allocate failed"},
        "UnexpectedAdmissionError",
        "Node",
    ),
    "CPU of the node": ({"reason": "OutOfcpu", "message": "x"}, "OutOfcpu", "Node"),
    "GPUs of the node": ({"reason": "OutOfnvidia.com/gpu", "message": "x"}, "PodFailed", "Node"),
    "rejected while it waits": ({**WAITS, "reason": "OutOfpods"}, "OutOfpods", "Node"),
    "no reason": ({}, "PodFailed", "Node"),
    "NUMA policy": ({"reason": "TopologyAffinityError"}, "TopologyAffinityError", "Start"),
    "port in use": ({"reason": "NodePorts"}, "NodePorts", "Start"),
    "drain": (
        {**RAN, "conditions": [{**TARGET, "reason": "EvictionByEvictionAPI"}]},
        "EvictionByEvictionAPI",
        "Disruption",
    ),
    "drain before its start": (
        {"conditions": [{**TARGET, "reason": "EvictionByEvictionAPI"}]},
        "EvictionByEvictionAPI",
        "Disruption",
    ),
    "shutdown": (
        {**RAN, "reason": "Terminated", "conditions": [TARGET]},
        "Terminated",
        "Disruption",
    ),
    "pressure": ({**RAN, "reason": "Evicted", "conditions": [TARGET]}, "Evicted", "Disruption"),
    "limit of its own disk": ({**RAN, "reason": "Evicted"}, "Evicted", "Job"),
    "limit of its own time": ({"reason": "DeadlineExceeded"}, "DeadlineExceeded", "Job"),
    "crash": (RAN, "ExitCode", "Job"),
    "crash of an init container": (INIT_RAN, "PodFailed", "Job"),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_of_a_pod_is_evidence_of(case: str) -> None:
    status, reason, evidence = ENDS[case]
    found = classify(pod_record(raw_pod(**status)))
    assert (found.reason, found.evidence, found.node) == (reason, evidence, "n0")


def test_a_pod_that_is_not_bound_was_not_rejected_by_a_kubelet() -> None:
    raw = raw_pod(reason="OutOfcpu")
    assert not pod_record({**raw, "spec": {"containers": []}}).rejected


def test_a_reason_that_is_no_word_is_shown() -> None:
    found = classify(pod_record(raw_pod(reason="OutOfnvidia.com/gpu", message="requested: 8")))
    assert found.message == "pod job-0-0 on n0: OutOfnvidia.com/gpu: requested: 8"


def test_times_and_set_up_of_a_starting_pod() -> None:
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:01:00Z"}
    network = {"type": "PodReadyToStartContainers", "status": "False"}
    found = pod_record(raw_pod(phase="Pending", conditions=[bound, network]))
    assert (found.bound_at, found.setting_up, found.rejected) == (60.0, True, False)
    pulling = {**network, "status": "True"}
    assert not pod_record(raw_pod(phase="Pending", conditions=[bound, pulling])).setting_up
