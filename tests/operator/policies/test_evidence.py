"""What the end of a pod is evidence of: the node, the job, or a disruption. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.cache.records import pod_record
from llmtrain_operator.policies.failure_classification import classify, is_consequence

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


WORK = [{"name": "llmtrain-work", "mountPath": "/var/lib/llmtrain"}]


def pod_with_init(mounts: list[Any], **ended: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such bucket", **ended}}
    raw = raw_pod(
        initContainerStatuses=[{"name": "fetch", "state": state}],
        containerStatuses=[
            {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
        ],
    )
    raw["spec"]["initContainers"] = [{"name": "fetch", "volumeMounts": mounts}]
    return raw


def test_an_init_container_of_the_job_fails_by_its_exit_code() -> None:
    found = classify(pod_record(pod_with_init(WORK)))
    assert (found.reason, found.exit_code, found.evidence) == ("ExitCode", 3, "Job")
    assert not found.transient and not pod_record(pod_with_init(WORK)).rejected
    assert found.message.startswith("no such bucket (init container fetch of pod job-0-0 on n0")


def test_the_exit_code_of_an_init_container_is_no_consequence() -> None:
    pod = pod_record(pod_with_init(WORK, exitCode=200))
    assert not is_consequence(pod) and classify(pod).reason == "ExitCode"


def test_an_init_container_without_memory_names_its_field() -> None:
    found = classify(pod_record(pod_with_init(WORK, exitCode=137, reason="OOMKilled")))
    assert found.reason == "OutOfMemory"
    assert found.message.startswith("spec.workers.initContainers: init container fetch of pod")


def test_an_init_container_of_a_webhook_is_no_end_of_the_job() -> None:
    found = classify(pod_record(pod_with_init([{"name": "token", "mountPath": "/x"}])))
    assert found.exit_code is None and found.transient


def test_a_disruption_comes_before_the_exit_code_of_an_init_container() -> None:
    raw = pod_with_init(WORK, exitCode=143)
    raw["status"]["conditions"] = [{**TARGET, "reason": "EvictionByEvictionAPI"}]
    assert classify(pod_record(raw)).reason == "EvictionByEvictionAPI"
