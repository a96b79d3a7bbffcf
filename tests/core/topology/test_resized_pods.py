"""What a pod requests while it is resized, by the rules of `PodRequests` of kube-scheduler."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.topology.resources import pod_requests

pytestmark = pytest.mark.unit

Raw = dict[str, Any]
GPU = "nvidia.com/gpu"
GI = 2**30
INFEASIBLE = [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]
DEFERRED = [{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]
IN_PROGRESS = [{"type": "PodResizeInProgress", "status": "True"}]


def container(name: str = "main", restart: str | None = None, **requests: str) -> Raw:
    found: Raw = {"name": name, "resources": {"requests": requests}}
    return found | ({"restartPolicy": restart} if restart else {})


def reported(name: str = "main", actual: Raw | None = None, **allocated: str) -> Raw:
    """Return the status of a container as the kubelet writes it."""
    found: Raw = {"name": name, "allocatedResources": allocated}
    return found if actual is None else found | {"resources": {"requests": actual}}


@pytest.mark.parametrize(
    ("desired", "allocated", "actual", "conditions", "cpu"),
    [
        ("4", "2", "2", DEFERRED, 4000),
        ("4", "2", "2", [], 4000),
        ("64", "2", "2", INFEASIBLE, 2000),
        ("64", "2", "3", INFEASIBLE, 3000),
        ("4", "4", "2", IN_PROGRESS, 4000),
        ("1", "1", "3", IN_PROGRESS, 3000),
        ("1", "3", "3", [], 3000),
        ("1", "3", "2", IN_PROGRESS, 3000),
        ("2", "2", "2", [], 2000),
    ],
)
def test_the_largest_of_desired_allocated_and_actual_counts_if_it_can_be_had(
    desired: str, allocated: str, actual: str, conditions: list[Raw], cpu: int
) -> None:
    spec = {"containers": [container(cpu=desired, memory="1Gi", **{GPU: "2"})]}
    had = {"memory": "1Gi", GPU: "2"}
    status = {
        "conditions": conditions,
        "containerStatuses": [reported(actual={"cpu": actual, **had}, cpu=allocated, **had)],
    }
    assert pod_requests(spec, status) == {"cpu": cpu, "memory": GI, GPU: 2, "pods": 1}


def test_what_is_not_reported_is_what_was_reported_before_it() -> None:
    spec = {"containers": [container(cpu="1")]}
    assert pod_requests(spec, {"containerStatuses": [reported(cpu="3")]})["cpu"] == 3000
    waiting = {"containerStatuses": [{"name": "main", "state": {"waiting": {}}}]}
    assert pod_requests(spec, waiting) == {"cpu": 1000, "pods": 1}
    assert pod_requests(spec, waiting | {"conditions": INFEASIBLE}) == {"pods": 1}
    only_actual = {"name": "main", "resources": {"requests": {"cpu": "2"}}}
    assert pod_requests(spec, {"containerStatuses": [only_actual]})["cpu"] == 2000


def test_each_resource_counts_for_itself() -> None:
    spec = {"containers": [container(cpu="4", memory="1Gi"), container("other", cpu="1")]}
    statuses = [reported(cpu="2", memory="3Gi"), reported("other", cpu="1")]
    found = pod_requests(spec, {"containerStatuses": statuses})
    assert found == {"cpu": 5000, "memory": 3 * GI, "pods": 1}


def test_the_three_are_compared_for_the_pod_and_not_for_each_container() -> None:
    """A CPU that one container gives to the other is counted once."""
    spec = {"containers": [container(cpu="1"), container("other", cpu="3")]}
    statuses = [reported(cpu="3"), reported("other", cpu="1")]
    assert pod_requests(spec, {"containerStatuses": statuses})["cpu"] == 4000


def test_sidecars_and_init_containers_are_resized_too() -> None:
    spec = {
        "initContainers": [container("side", "Always", cpu="1"), container("first", cpu="6")],
        "containers": [container(cpu="2")],
        "overhead": {"cpu": "250m"},
    }
    side = reported("side", cpu="3")
    assert pod_requests(spec)["cpu"] == 7250
    assert pod_requests(spec, {"initContainerStatuses": [side]})["cpu"] == 9250
    spec["containers"] = [container(cpu="8")]
    assert pod_requests(spec, {"initContainerStatuses": [side]})["cpu"] == 11250


def whole(desired: str, allocated: str) -> tuple[Raw, Raw]:
    """Return spec and status of a pod that requests CPU as a whole."""
    spec = {
        "containers": [container(cpu="1", **{GPU: "8"})],
        "resources": {"requests": {"cpu": desired, "memory": "1Gi"}},
    }
    had = {"memory": "1Gi", GPU: "8", "cpu": allocated}
    return spec, {"resources": {"requests": {"memory": "1Gi"}}, "allocatedResources": had}


def test_a_request_of_the_whole_pod_is_resized() -> None:
    spec, status = whole("5", "3")
    expected = {"cpu": 5000, "memory": GI, GPU: 8, "pods": 1}
    assert pod_requests(spec, status) == expected
    assert pod_requests(spec, status | {"conditions": INFEASIBLE}) == expected | {"cpu": 3000}
    spec, status = whole("2", "3")
    assert pod_requests(spec, status) == expected | {"cpu": 3000}
    del status["resources"]
    assert pod_requests(spec, status) == expected | {"cpu": 2000}


def test_what_the_kubelet_reports_for_the_pod_replaces_what_it_reports_for_containers() -> None:
    spec = {"containers": [container(cpu="2")]}
    containers = {"containerStatuses": [reported(cpu="9")]}
    status = {"allocatedResources": {"cpu": "3"}, "resources": {"requests": {"cpu": "4"}}}
    assert pod_requests(spec, containers | status)["cpu"] == 4000
    assert pod_requests(spec, containers | status | {"resources": {}})["cpu"] == 9000


def test_overhead_is_added_to_what_the_kubelet_reports_with_it() -> None:
    """kube-scheduler 1.37 counts it twice. A count below that pins pods to full nodes."""
    spec = {"containers": [container(cpu="2")], "overhead": {"cpu": "250m"}}
    total = {"cpu": "2250m"}
    status = {"allocatedResources": total, "resources": {"requests": total}}
    assert pod_requests(spec, status)["cpu"] == 2500


def test_only_the_request_of_a_whole_pod_replaces_others() -> None:
    """The API server sets a missing one: from the containers, or else from the limit."""
    spec = {"containers": [container(cpu="2")], "resources": {"limits": {"cpu": "5"}}}
    assert pod_requests(spec)["cpu"] == 2000
