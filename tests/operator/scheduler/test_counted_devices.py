"""Kinds of devices that are counted, and what one namespace can change for others."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.devices import capacity
from llmtrain_core.devices.capacity import node_amounts
from llmtrain_core.devices.demand import DeviceKind
from llmtrain_core.queueing import PendingJob
from llmtrain_operator.cache import device_demand
from llmtrain_operator.cache.device_demand import KINDS_OF_NAMESPACE
from llmtrain_operator.cache.records import ForeignPod
from tests.support.devices.cluster import GPU, PLUGIN, DeviceCluster, placed, refused
from tests.support.devices.objects import (
    GPU_CLASS,
    GPU_DRIVER,
    claim,
    claims_of_workers,
    device_class,
    gpus,
)
from tests.support.operator_harness.observed import status

pytestmark = pytest.mark.unit


def selecting(number: int) -> Any:
    expression = f"device.attributes['{GPU_DRIVER}'].cores >= {number}"
    claims = claims_of_workers()
    claims[0]["requests"][0]["selectors"] = [{"cel": {"expression": expression}}]
    return claims


def test_the_kinds_of_a_namespace_are_bounded_and_those_of_placed_jobs_stay(
    devices: DeviceCluster,
) -> None:
    devices.put(gpus("n0", 2, cores=100), gpus("n1", 2, cores=100))
    for number in range(KINDS_OF_NAMESPACE):
        devices.submit(f"many-{number:02}", selecting(number))
    devices.submit("zz-placed", selecting(98), status=placed(**{GPU: 2}))
    devices.submit("zz-waiting", selecting(99))
    devices.submit("zz-plain")
    devices.submit("other", selecting(97), namespace="another")
    devices.queue()
    found = devices.queue()
    assert refused(found["zz-waiting"])[0] == "TooManyActiveJobs"
    assert isinstance(found["many-00"], PendingJob) and isinstance(found["zz-plain"], PendingJob)
    assert isinstance(found["other"], PendingJob)
    found = devices.allocatable("n0")
    assert found[_kind(98)] == 2, "it may restart there"
    assert _kind(99) not in found


def _kind(number: int) -> str:
    expression = f"device.attributes['{GPU_DRIVER}'].cores >= {number}"
    return DeviceKind(GPU_CLASS, (expression,)).resource


def test_a_new_kind_is_counted_beside_those_that_are_known(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2, cores=100), claim("c", "n0", (GPU_DRIVER, "gpu-0")))
    for number in (50, 200):
        devices.submit(f"job-{number}", selecting(number))
        devices.queue()
        devices.allocatable("n0")
    assert devices.allocatable("n0") == {GPU: 2, _kind(50): 2}
    used = devices.informers.used_by_foreign()
    assert used == {("n0", GPU): 1, ("n0", _kind(50)): 1}


def test_nodes_are_counted_once_per_change(
    devices: DeviceCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def count(*arguments: Any) -> Any:
        counted.append(1)
        return node_amounts(*arguments)

    monkeypatch.setattr("llmtrain_operator.cache.node_devices.node_amounts", count)
    devices.put(gpus("n0", 2), gpus("n1", 2))
    for _ in range(3):
        [*devices.informers.all_nodes()]
    assert len(counted) == 2, "also without jobs that claim devices"
    devices.submit("job")
    devices.queue()
    [*devices.informers.all_nodes()]
    counted.clear()
    devices.put(claim("c", "n0", (GPU_DRIVER, "gpu-0")))
    for _ in range(3):
        [*devices.informers.all_nodes()]
        devices.informers.used_by_foreign()
    assert len(counted) == 1


def test_claims_that_come_before_their_slices_are_counted(devices: DeviceCluster) -> None:
    devices.put(claim("c", "n0", (GPU_DRIVER, "gpu-0")), gpus("n0", 2))
    devices.submit("job")
    devices.queue()
    assert devices.informers.used_by_foreign() == {("n0", GPU): 1}
    devices.gone("c")
    assert devices.informers.used_by_foreign() == {}


def test_a_job_that_has_ended_counts_no_kinds(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2, cores=100), gpus("n1", 2, cores=100))
    for number in range(KINDS_OF_NAMESPACE):
        devices.submit(f"done-{number:02}", selecting(number))
    devices.submit("waiting", selecting(99))
    devices.queue()
    assert refused(devices.queue()["waiting"])[0] == "TooManyActiveJobs"
    ended = devices.submit("done-00", selecting(0), status=status(ConditionType.SUCCEEDED))
    devices.checked.get(ended)
    assert isinstance(devices.queue()["waiting"], PendingJob)


def test_namespaces_take_turns_where_all_together_claim_too_many_kinds(
    devices: DeviceCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_demand, "KINDS", 3)
    devices.put(gpus("n0", 2, cores=100))
    for number in range(4):
        devices.submit(f"first-{number}", selecting(number), namespace="many")
    devices.submit("last", selecting(9), namespace="few")
    devices.queue()
    found = devices.queue()
    assert isinstance(found["last"], PendingJob), "it is the youngest, and first of its namespace"
    assert refused(found["first-3"])[0] == "TooManyActiveJobs"


def test_classes_that_do_not_exist_are_not_counted(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2))
    for number in range(3):
        claims = claims_of_workers()
        claims[0]["requests"][0]["deviceClassName"] = f"none-{number}"
        devices.submit(f"job-{number}", claims)
    devices.queue()
    assert devices.allocatable("n0") == {}
    assert not devices.informers.devices.counts(DeviceKind("none-0"))


def test_selectors_are_evaluated_once_for_the_slices_of_a_node(
    devices: DeviceCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.put(gpus("n0", 2, cores=100), gpus("n1", 2, cores=100))
    devices.submit("job", selecting(1))
    devices.queue()
    devices.allocatable("n0")

    def evaluate(*_: Any) -> Any:
        raise AssertionError("a selector is evaluated again")

    with monkeypatch.context() as patched:
        patched.setattr(capacity, "selected", evaluate)
        devices.put(claim("c", "n0", (GPU_DRIVER, "gpu-0")))
        assert devices.informers.used_by_foreign() == {("n0", GPU): 1, ("n0", _kind(1)): 1}
    devices.put(gpus("n0", 4, cores=100))
    assert devices.allocatable("n0") == {GPU: 4, _kind(1): 4}


def test_a_claim_that_only_says_it_is_of_kube_scheduler_takes_its_devices() -> None:
    devices = DeviceCluster()
    selector = f"device.driver == '{GPU_DRIVER}'"
    devices.put(device_class(GPU_CLASS, selector, extended=PLUGIN), gpus("n0", 4))
    devices.submit("job")
    devices.queue()
    mark = {"resource.kubernetes.io__extended-resource-claim": "true"}
    for pod, requested in (("honest", 1), ("liar", 0)):
        if requested:
            foreign = ForeignPod("n0", ((PLUGIN, requested),))
            devices.informers.foreign_pods._store(pod, None, foreign)
        device = (GPU_DRIVER, f"gpu-{requested}")
        devices.put(claim(f"claim-{pod}", "n0", device, pod=pod, **mark))
    devices.put(claim("without-pod", "n0", (GPU_DRIVER, "gpu-2"), **mark))
    assert devices.informers.used_by_foreign() == {("n0", PLUGIN): 3, ("n0", GPU): 3}
