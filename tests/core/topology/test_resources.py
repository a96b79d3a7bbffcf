"""What a pod requests, as kube-scheduler counts it, and amounts as text."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.base import read_quantity
from llmtrain_core.topology.resources import (
    amount_text,
    amounts,
    compact,
    container_requests,
    foreign_requests,
    missing_text,
    pod_requests,
)

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
GI = 2**30


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4", 4000),
        ("500m", 500),
        ("0.1", 100),
        (".5", 500),
        ("1e3", 1_000_000),
        ("1E3", 1_000_000),
        ("100u", 1),
        ("1n", 1),
        ("2k", 2_000_000),
    ],
)
def test_cpu_is_counted_in_thousandths_of_a_core_and_rounded_up(text: str, amount: int) -> None:
    assert amounts({"cpu": text}) == {"cpu": amount}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("16Gi", 16 * GI),
        ("1.5Ki", 1536),
        ("128974848000m", 128974848),
        ("1M", 10**6),
        ("129e6", 129 * 10**6),
        ("1Ei", 2**60),
        ("9E", 9 * 10**18),
        ("99E", 2**63 - 1),
    ],
)
def test_other_resources_are_whole_numbers(text: str, amount: int) -> None:
    assert amounts({"memory": text}) == {"memory": amount}


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "-1", "1e999", "1Kib", "0x10", "1_0", "٣"])
def test_what_is_no_quantity_requests_nothing(text: str) -> None:
    assert read_quantity(text) is None
    assert amounts({"memory": text, GPU: "0"}) == {}


def container(restart: str | None = None, limits: dict[str, str] | None = None, **requests: str):
    found: dict[str, Any] = {"resources": {"requests": requests, "limits": limits or {}}}
    return found | ({"restartPolicy": restart} if restart else {})


def test_a_missing_request_is_the_limit() -> None:
    limits = {"cpu": "2", "memory": "1Gi"}
    assert container_requests({"limits": limits, "requests": {"cpu": 1}}) == {
        "cpu": 1000,
        "memory": GI,
    }


def test_containers_are_added_and_a_pod_takes_one_slot() -> None:
    spec = {"containers": [container(cpu="1"), container(cpu="500m", memory="1Gi")]}
    assert pod_requests(spec) == {"cpu": 1500, "memory": GI, "pods": 1}
    assert pod_requests({}) == {"pods": 1}


def test_an_init_container_counts_if_it_needs_more() -> None:
    spec = {"containers": [container(cpu="2")], "initContainers": [container(cpu="3", memory="1")]}
    assert pod_requests(spec) == {"cpu": 3000, "memory": 1, "pods": 1}


def test_a_sidecar_runs_beside_the_init_containers_after_it_and_the_containers() -> None:
    side = container("Always", cpu="1")
    late = {"containers": [container(cpu="2")], "initContainers": [container(cpu="3"), side]}
    assert pod_requests(late)["cpu"] == 3000
    early = {"containers": [container(cpu="2")], "initContainers": [side, container(cpu="3")]}
    assert pod_requests(early)["cpu"] == 4000


def test_a_request_of_the_whole_pod_replaces_those_of_its_containers() -> None:
    spec = {
        "containers": [container(cpu="2", limits={GPU: "8"})],
        "resources": {"requests": {"cpu": "5", "memory": "2Gi"}},
        "overhead": {"cpu": "250m"},
    }
    assert pod_requests(spec) == {"cpu": 5250, GPU: 8, "memory": 2 * GI, "pods": 1}


def test_equal_pods_share_their_amounts() -> None:
    one, other = (compact(pod_requests({"containers": [container(cpu="1")]})) for _ in range(2))
    assert one == (("cpu", 1000), ("pods", 1)) and one is other


def test_a_foreign_pod_of_negative_priority_takes_only_devices() -> None:
    spec = {"containers": [container(cpu="60", **{GPU: "1"})]}
    assert foreign_requests({**spec, "priority": -10}) == {GPU: 1}
    for priority in ({}, {"priority": 0}, {"priority": 5}):
        assert foreign_requests({**spec, **priority}) == {"cpu": 60000, GPU: 1, "pods": 1}


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        ("cpu", 4000, "4"),
        ("cpu", 1500, "1500m"),
        ("memory", 2 * 2**40, "2Ti"),
        ("memory", 1007 * GI + 5, "1007Gi"),
        ("memory", 3 * GI // 2, "1.5Gi"),
        ("hugepages-2Mi", 1000, "1000"),
        ("pods", 110, "110"),
        (GPU, 8, "8"),
    ],
)
def test_amounts_are_printed_as_quantities(resource: str, amount: int, text: str) -> None:
    assert amount_text(resource, amount) == text


def test_what_is_missing_is_named_with_what_is_free() -> None:
    wanted = {"cpu": 4000, "memory": GI, "pods": 1}
    free = [("cpu", 1000), ("memory", 2 * GI), ("pods", 0)]
    assert missing_text(wanted, free) == "cpu 4 requested, 1 free; pods 1 requested, 0 free"
