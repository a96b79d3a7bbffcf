"""A gang is placed on nodes of one network, with the devices that the network adds."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.network import NetworkRequest
from llmtrain_core.placement import Placement, Request, Unplaceable, on_network, place
from llmtrain_core.queueing.capacity import request_class_key
from llmtrain_core.topology.inventory import Node, Snapshot, Taint, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from llmtrain_core.validation.check import Job, check

pytestmark = pytest.mark.unit

GPU, EFA, PAGES = "nvidia.com/gpu", "vpc.amazonaws.com/efa", "hugepages-2Mi"
LEVELS = (FabricLevel("leaf", "l"), NODE)


def job(nodes: int, **network: Any) -> Job:
    spec: dict[str, Any] = {
        "workers": {"gpusPerNode": 8, "image": "example.com/x:1", "command": ["x"]},
        "parallelism": {"tensor": 8, "data": nodes},
    }
    if network:
        spec["network"] = network
    found = check("job", spec)
    assert isinstance(found, Job), found
    return found


def nodes(name: str, count: int, taints: tuple[Taint, ...] = (), **more: int) -> list[Node]:
    amounts = {GPU: 8, **{key.replace("__", "/"): amount for key, amount in more.items()}}
    return [
        Node(f"{name}{index}", {"l": name}, {**amounts}, taints=taints) for index in range(count)
    ]


def efa(name: str, count: int, nics: int = 32, taints: tuple[Taint, ...] = ()) -> list[Node]:
    found = nodes(name, count, taints)
    return [Node(n.name, n.labels, {**n.allocatable, EFA: nics}, taints=n.taints) for n in found]


def placed(wanted: Job, state: Snapshot, **changes: Any) -> tuple[Placement | Unplaceable, Request]:
    request = on_network(Request.of(wanted), NetworkRequest.of(wanted), state, **changes)
    return place(request, state), request


def test_a_gang_gets_nodes_of_one_network_and_its_devices() -> None:
    state = snapshot(LEVELS, [*nodes("a", 2), *efa("b", 2)], [])
    answer, request = placed(job(2), state)
    assert isinstance(answer, Placement)
    assert [node.name for node in answer.nodes] == ["b0", "b1"]
    assert request.needs[EFA] == 32 and request.network and request.network.network
    assert request.network.network.row == "aws-efa"


def test_nodes_whose_networks_differ_hold_no_gang_together() -> None:
    state = snapshot(LEVELS, [*nodes("a", 2), *efa("b", 2)], [])
    answer, _ = placed(job(3), state)
    assert isinstance(answer, Unplaceable)
    assert "2 has another network: " in answer.message
    answer, request = placed(job(3, profile="tcp"), state)
    assert isinstance(answer, Placement) and EFA not in request.needs


def test_the_devices_of_the_profile_are_counted_by_placement() -> None:
    used = [Usage("b0", EFA, 16)]
    state = snapshot(LEVELS, efa("b", 3), used)
    answer, _ = placed(job(2), state)
    assert isinstance(answer, Placement)
    assert [node.name for node in answer.nodes] == ["b1", "b2"]
    answer, _ = placed(job(3), state)
    assert isinstance(answer, Unplaceable) and f"1 {EFA} in use" in answer.message


def test_another_network_is_used_where_the_best_one_is_busy() -> None:
    busy = [Usage(f"b{index}", GPU, 8) for index in range(2)]
    both = [*nodes("a", 2), *efa("b", 2)]
    answer, request = placed(job(2), snapshot(LEVELS, both, busy))
    assert isinstance(answer, Placement) and request.network and request.network.network
    assert (answer.nodes[0].name, request.network.network.row) == ("a0", "tcp")
    everything = [Usage(node.name, GPU, 8) for node in both]
    _, request = placed(job(2), snapshot(LEVELS, both, everything))
    assert request.network and request.network.network
    assert request.network.network.row == "aws-efa"


def test_spares_have_the_network_of_the_gang() -> None:
    wanted = job(2)
    request = Request.of(wanted)
    spare = Request(**{**_fields(request), "spares": 1})
    state = snapshot(LEVELS, [*nodes("a", 3), *efa("b", 2)], [])
    found = on_network(spare, NetworkRequest.of(wanted), state)
    assert found.network and found.network.nodes == {"a0", "a1", "a2"}


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def test_a_profile_that_no_node_has_is_refused_with_the_nearest() -> None:
    answer, _ = placed(job(2, profile="infiniband"), snapshot(LEVELS, efa("b", 2), []))
    assert isinstance(answer, Unplaceable) and answer.reason == "NetworkMismatch"
    assert answer.message.startswith("spec.network.profile: ") and not answer.blockers
    assert "use network.profile efa or auto" in answer.message


def test_taints_of_the_devices_of_the_profile_are_tolerated() -> None:
    tainted = efa("b", 2, taints=(Taint(EFA, "", "NoSchedule"), Taint(GPU, "x", "NoSchedule")))
    answer, request = placed(job(2), snapshot(LEVELS, tainted, []))
    assert isinstance(answer, Placement)
    assert {toleration.key for toleration in request.tolerations} == {EFA, GPU}


def test_the_class_of_a_request_differs_by_network() -> None:
    state = snapshot(LEVELS, [*nodes("a", 2), *efa("b", 2)], [])
    wanted = job(2)
    request = Request.of(wanted)
    first = on_network(request, NetworkRequest.of(wanted), state)
    tcp = job(2, profile="tcp")
    second = on_network(Request.of(tcp), NetworkRequest.of(tcp), state)
    keys = {request_class_key(each, state) for each in (request, first, second)}
    assert len(keys) == 3


def test_a_variable_from_another_object_is_shown_without_its_value() -> None:
    spec = {
        "workers": {
            "gpusPerNode": 8,
            "image": "example.com/x:1",
            "command": ["x"],
            "env": [
                {
                    "name": "NCCL_IB_HCA",
                    "valueFrom": {"configMapKeyRef": {"name": "nccl", "key": "hca"}},
                }
            ],
        },
        "parallelism": {"tensor": 8, "data": 2},
    }
    found = check("job", spec)
    assert isinstance(found, Job), found
    assert NetworkRequest.of(found).env == {"NCCL_IB_HCA": "(valueFrom)"}
