"""On which nodes a pod can start now: every resource, taints, labels and the node's state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.job import Toleration
from llmtrain_core.node_health import CORDONED, HealthFinding
from llmtrain_core.placement import (
    Placement,
    Request,
    Unplaceable,
    device_tolerations,
    obstacles_text,
    place,
    start_obstacles,
)
from llmtrain_core.placement.filter import MAX_FINDINGS
from llmtrain_core.topology.inventory import Node, Taint, Usage, snapshot
from llmtrain_core.topology.levels import NODE
from llmtrain_core.validation.check import Job, check

pytestmark = pytest.mark.unit

GPU, TI = "nvidia.com/gpu", 2**40
AMPLE = {"cpu": 64000, "memory": TI, "ephemeral-storage": TI, "pods": 110, GPU: 2}


def node(name: str, **changes: Any) -> Node:
    return Node(name, {}, {**AMPLE, **changes.pop("allocatable", {})}, **changes)


def request(nodes: int = 1, **resources: str) -> Request:
    amounts = {name.replace("_", "-"): amount for name, amount in resources.items()}
    exact = {name: amounts[name] for name in amounts if name.startswith("hugepages-")}
    spec = {
        "workers": {
            "gpusPerNode": 2,
            "image": "example.com/x:1",
            "command": ["x"],
            "resources": {"requests": amounts, "limits": exact},
        },
        "parallelism": {"tensor": 2, "data": nodes},
    }
    found = check("job", spec)
    assert isinstance(found, Job), found
    return Request.of(found)


@pytest.mark.parametrize(
    ("resource", "wanted", "offered", "text"),
    [
        ("cpu", "4", 1000, "cpu 4 requested, 1 free"),
        ("memory", "2Ti", TI, "memory 2Ti requested, 1Ti free"),
        ("ephemeral_storage", "2Ti", TI, "ephemeral-storage 2Ti requested, 1Ti free"),
        ("hugepages_2Mi", "4Mi", 2**21, "hugepages-2Mi 4Mi requested, 2Mi free"),
    ],
)
def test_every_resource_of_a_job_limits_its_nodes(
    resource: str, wanted: str, offered: int, text: str
) -> None:
    name = resource.replace("_", "-")
    small, asks = node("a", allocatable={name: offered}), request(**{resource: wanted})
    assert start_obstacles(asks, small, {}) == (f"has less than {wanted} {name}",)
    assert obstacles_text(asks, small, {}) == text
    answer = place(asks, snapshot((NODE,), [small], []))
    assert isinstance(answer, Unplaceable)
    assert f"needs 1 nodes with 2 {GPU} and {wanted} {name}" in answer.message
    ample = node("a", allocatable={name: 2 * offered * (4 if name == "cpu" else 1)})
    assert isinstance(place(asks, snapshot((NODE,), [ample], [])), Placement)


def test_a_node_without_a_free_pod_slot_takes_no_pod() -> None:
    full = node("a", allocatable={"pods": 3})
    assert start_obstacles(request(), full, {("a", "pods"): 3}) == ("pods in use",)
    assert start_obstacles(request(), full, {("a", "pods"): 2}) == ()


def test_a_shortened_file_of_nodes_limits_only_what_it_names() -> None:
    short = Node("a", {}, {GPU: 2})
    assert start_obstacles(request(cpu="4", memory="1Gi"), short, {}) == ()
    refused = start_obstacles(request(ephemeral_storage="1Gi"), short, {})
    assert refused == ("has less than 1Gi ephemeral-storage",)


def test_four_nodes_full_of_cpu_and_a_fifth_that_is_free() -> None:
    nodes = [node(f"n{index}", allocatable={"cpu": 8000}) for index in range(5)]
    state = snapshot((NODE,), nodes, [Usage(f"n{index}", "cpu", 6000) for index in range(4)])
    answer = place(request(cpu="4"), state)
    assert isinstance(answer, Placement) and [n.name for n in answer.nodes] == ["n4"]
    answer = place(request(2, cpu="4"), state)
    assert isinstance(answer, Unplaceable) and answer.reason == "InsufficientGpus"
    assert answer.refused == {"cpu in use": 4}


def test_a_pod_tolerates_the_taints_of_its_own_devices() -> None:
    taint = Taint(GPU, "present", "NoSchedule")
    assert start_obstacles(request(), node("a", taints=(taint,)), {}) == ()
    for other in (Taint("amd.com/gpu", "", "NoSchedule"), Taint(GPU, "", "NoExecute")):
        assert start_obstacles(request(), node("a", taints=(other,)), {}) == (
            "taint not tolerated",
        )
    assert device_tolerations(["cpu", "rdma/hca"]) == [
        Toleration(key="rdma/hca", operator="Exists", effect="NoSchedule")
    ]


def test_a_node_with_a_finding_of_the_health_table_takes_no_pod() -> None:
    taint = Taint("karpenter.sh/disrupted", "", "NoSchedule")
    found = HealthFinding("aks/XIDErrors", "condition XIDErrors=True, reason XIDErrors79")
    cause = "avoided for aks/XIDErrors: condition XIDErrors=True, reason XIDErrors79"
    bad = node("a", health=(found,), taints=(taint,))
    tolerant = replace(request(), tolerations=(Toleration(operator="Exists"),))
    assert start_obstacles(tolerant, bad, {}) == (cause,), "a toleration heals no node"
    assert obstacles_text(request(), bad, {}) == f"{cause}; taint not tolerated"
    assert start_obstacles(request(), node("a", health=(replace(found, in_force=False),)), {}) == ()
    assert start_obstacles(request(), node("a", cordoned=True, health=(CORDONED,)), {}) == (
        "cordoned",
    )
    many = tuple(replace(found, row=f"a/{index}") for index in range(9))
    assert len(start_obstacles(request(), node("a", health=many), {})) == MAX_FINDINGS


def test_a_job_that_waits_for_a_node_says_which_row_and_which_evidence() -> None:
    found = [HealthFinding("a/b", f"label a/b={index}") for index in range(2)]
    nodes = [node("n0"), *(node(f"n{i + 1}", health=(found[i],)) for i in range(2))]
    answer = place(request(2), snapshot((NODE,), nodes, []))
    assert isinstance(answer, Unplaceable) and answer.reason == "InsufficientNodes"
    assert answer.refused == {"avoided for a/b": 2}
    assert answer.blockers == ("n1",)
    assert "when these nodes become available: n1 (avoided for a/b: label a/b=0)" in answer.message


def test_all_obstacles_of_a_node_are_named() -> None:
    bad = node("a", cordoned=True, taints=(Taint("team", "x", "NoSchedule"),))
    used = {("a", GPU): 1, ("a", "cpu"): 63000}
    assert start_obstacles(request(cpu="4"), bad, used) == (
        "cordoned",
        "taint not tolerated",
        f"{GPU} in use",
        "cpu in use",
    )
    assert obstacles_text(request(cpu="4"), bad, used) == (
        f"cordoned; taint not tolerated; {GPU} 2 requested, 1 free; cpu 4 requested, 1 free"
    )
