"""Devices that jobs get by claims count like any resource: for placement, restarts and others."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.queueing import Assignment, PendingJob
from llmtrain_core.queueing.quota import PodCharge, exceeded_quota, read_quota, with_claims
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.records import ForeignPod
from llmtrain_operator.metrics.nodes import gpus_by_node, node_figures
from llmtrain_operator.scheduler.usage import usage
from tests.support.devices.cluster import GPU, PLUGIN, DeviceCluster, placed, refused
from tests.support.devices.objects import (
    CHANNEL_CLASS,
    CHANNELS,
    CLASSES,
    GPU_CLASS,
    GPU_DRIVER,
    NIC_DRIVER,
    channel,
    claim,
    claims_of_workers,
    device_class,
    gpus,
    nics,
)
from tests.support.operator_harness.observed import pod
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit


def test_a_gang_gets_the_nodes_whose_slices_have_the_devices(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2), gpus("n1", 2))
    devices.submit("job")
    decision = devices.decide()["job"]
    assert isinstance(decision, Assignment), decision
    assert {*decision.nodes} == {"n0", "n1"}
    assert decision.resources[GPU] == 2 and PLUGIN not in decision.resources


def test_a_gang_without_slices_waits_with_a_typed_reason(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2))
    devices.submit("job")
    reason, message = refused(devices.decide()["job"])
    assert reason == "InsufficientDevices"
    assert message.startswith(f"spec.workers.deviceClaims: needs 2 nodes with 2 {GPU}; 1 of 2 have")
    devices.put(gpus("n1", 2))
    assert isinstance(devices.decide()["job"], Assignment)


def test_claims_of_others_take_devices_until_they_are_gone(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2), gpus("n1", 2), claim("other", "n1", (GPU_DRIVER, "gpu-0")))
    devices.submit("job")
    reason, message = refused(devices.decide()["job"])
    assert reason == "InsufficientGpus" and f"n1 ({GPU} in use)" in message
    devices.gone("other")
    assert isinstance(devices.decide()["job"], Assignment)


def test_a_placement_and_the_claims_of_its_pods_are_the_same_devices(
    devices: DeviceCluster,
) -> None:
    devices.put(gpus("n0", 4), gpus("n1", 4))
    devices.submit("one", status=placed(**{GPU: 2}))
    for index in range(2):
        each = pod(index, job="one", owner="one")
        devices.informers.pods._store(each.uid, None, each)
        own = (GPU_DRIVER, "gpu-0"), (GPU_DRIVER, "gpu-1")
        devices.put(claim(f"of-{index}", f"n{index}", *own, pod=each.uid))
    devices.submit("two")
    assert isinstance(devices.decide()["two"], Assignment), "two of four devices are left"
    devices.submit(
        "three",
        claims_of_workers(4),
        workers={"gpusPerNode": 4},
        parallelism={"tensor": 4, "data": 2},
    )
    assert refused(devices.decide()["three"])[0] == "InsufficientGpus"


def test_claims_of_pods_without_a_placement_count_until_they_end(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2), gpus("n1", 2))
    left = pod(0, job="gone", owner="gone")
    devices.informers.pods._store(left.uid, None, left)
    devices.put(claim("of-0", "n0", (GPU_DRIVER, "gpu-0"), pod=left.uid))
    devices.submit("next")
    assert refused(devices.decide()["next"])[0] == "InsufficientGpus"
    devices.gone("of-0")
    assert isinstance(devices.decide()["next"], Assignment)


def test_the_job_itself_may_start_where_its_claims_are_and_others_may_not(
    devices: DeviceCluster,
) -> None:
    devices.put(gpus("n0", 2), gpus("n1", 2))
    job = devices.submit("job", status=placed(**{GPU: 2}))
    other = devices.submit("other", status=placed(**{GPU: 2}))
    mine = pod(0, job="job", owner="job")
    devices.informers.pods._store(mine.uid, None, mine)
    devices.put(claim("c", "n0", (GPU_DRIVER, "gpu-0"), pod=mine.uid))
    devices.queue()
    node = devices.informers.node("n0")
    assert node is not None
    assert devices.reader.start_obstacles(job, node.node) == ()
    assert devices.reader.start_obstacles(other, node.node) == (f"{GPU} in use",)


def test_aligned_devices_are_placed_by_what_is_left_at_one_root(
    devices: DeviceCluster,
) -> None:
    devices.put(gpus("n0", 2), nics("n0", [0, 1]), gpus("n1", 2), nics("n1", [0, 5]))
    devices.submit("job", claims_of_workers(1, nics=1, per_pod=2, aligned=True))
    reason, message = refused(devices.decide()["job"])
    assert reason == "InsufficientDevices" and f"{GPU_CLASS}+rdma.example.com[" in message
    devices.put(nics("n1", [0, 1]))
    assert isinstance(devices.decide()["job"], Assignment)
    devices.put(claim("other", "n1", (NIC_DRIVER, "nic-0")))
    assert refused(devices.decide()["job"])[0] == "InsufficientGpus"


def test_an_extended_resource_and_claims_share_the_devices_of_its_class() -> None:
    devices = DeviceCluster()
    selector = f"device.driver == '{GPU_DRIVER}'"
    devices.put(device_class(GPU_CLASS, selector, extended=PLUGIN), gpus("n0", 2), gpus("n1", 2))
    devices.submit("plain", claims=[])
    decision = devices.decide()["plain"]
    assert isinstance(decision, Assignment), "a class stands for the GPUs"
    foreign = ForeignPod("n1", ((PLUGIN, 1),))
    devices.informers.foreign_pods._store("foreign", None, foreign)
    devices.submit("claims")
    found = devices.decide()
    assert refused(found["plain"])[0] == refused(found["claims"])[0] == "InsufficientGpus"
    devices.informers.foreign_pods._store("foreign", foreign, None)
    devices.put(claim("other", "n1", (GPU_DRIVER, "gpu-0")))
    found = devices.decide()
    assert refused(found["plain"])[0] == refused(found["claims"])[0] == "InsufficientGpus"


def test_a_node_of_a_device_plugin_has_no_devices_to_claim() -> None:
    devices = DeviceCluster(allocatable={PLUGIN: 2})
    selector = f"device.driver == '{GPU_DRIVER}'"
    devices.put(device_class(GPU_CLASS, selector, extended=PLUGIN), gpus("n0", 2))
    devices.submit("claims")
    assert refused(devices.decide()["claims"])[0] == "InsufficientDevices"
    devices.submit("plain", claims=[])
    assert isinstance(devices.decide()["plain"], Assignment)


@pytest.mark.parametrize(
    ("classes", "reason", "text"),
    [
        ((), "DeviceClassNotFound", f"no DeviceClass is named '{GPU_CLASS}'; create it, or"),
        (
            (device_class(GPU_CLASS, "device.attributes.size() > 0"),),
            "DeviceClassNotSupported",
            "selector 'device.attributes.size() > 0': ",
        ),
    ],
)
def test_a_class_that_cannot_be_counted_is_named(classes: Any, reason: str, text: str) -> None:
    devices = DeviceCluster()
    devices.put(*classes)
    devices.submit("job")
    found = refused(devices.queue()["job"])
    assert found[0] == reason and text in found[1]
    assert found[1].startswith("spec.workers.deviceClaims: ")


def test_a_cluster_without_the_devices_of_compute_domains_says_so(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 2), gpus("n1", 2))
    devices.submit("job", topology={"computeDomain": "auto"})
    reason, message = refused(devices.queue()["job"])
    assert reason == "NotServed" and message.startswith("spec.topology.computeDomain: ")
    assert "install the DRA driver of NVIDIA" in message


def test_a_node_is_in_one_compute_domain_at_a_time() -> None:
    devices = DeviceCluster()
    devices.put(*CLASSES, CHANNELS)
    for name in ("n0", "n1"):
        devices.put(gpus(name, 4), channel(name))
    devices.submit("one", topology={"computeDomain": "auto"})
    decision = devices.decide()["one"]
    assert isinstance(decision, Assignment), decision
    devices.submit("one", status=placed(**decision.resources), topology={"computeDomain": "auto"})
    devices.submit("two", topology={"computeDomain": "auto"})
    devices.submit("three")
    found = devices.decide()
    assert isinstance(found["three"], Assignment), "it needs no channel"
    reason, message = refused(found["two"])
    assert reason == "InsufficientGpus" and CHANNEL_CLASS in message


def test_an_operator_that_cannot_read_devices_says_so(devices: DeviceCluster) -> None:
    found = devices.informers.device_informers
    assert found is not None
    found.claims.missing = "403 Forbidden: no"
    devices.submit("job")
    reason, message = refused(devices.queue()["job"])
    assert reason == "NotServed" and "403 Forbidden: no" in message


def test_an_operator_without_the_flag_refuses_the_fields_by_name() -> None:
    job = record(
        "job",
        {},
        workers={"command": ["x"], "deviceClaims": claims_of_workers()},
        topology={"computeDomain": "auto"},
    )
    problems = CheckedJobs().get(job)
    assert isinstance(problems, list)
    assert [(each.reason, each.field) for each in problems] == [
        ("Forbidden", "spec.workers.deviceClaims"),
        ("Forbidden", "spec.topology.computeDomain"),
    ]
    assert "set config.deviceClaims of the chart" in str(problems[0])
    assert isinstance(CheckedJobs(device_claims=True).get(job), list)


def test_quotas_of_devices_count_the_claims_of_a_gang(devices: DeviceCluster) -> None:
    devices.put(gpus("n0", 4), gpus("n1", 4))
    devices.submit("one", status=placed(**{GPU: 2}))
    [(promised, count)] = devices.reader.promised("ns", {})
    name = f"{GPU_CLASS}.deviceclass.resource.k8s.io/devices"
    assert promised.amounts[name] == 2 and count == 2
    assert promised.amounts["count/resourceclaims.resource.k8s.io"] == 1
    devices.submit("two")
    pending = devices.queue()["two"]
    assert isinstance(pending, PendingJob)
    gang = with_claims(PodCharge({}), pending.resources), pending.node_count
    quota = read_quota({"metadata": {"name": "q"}, "spec": {"hard": {name: "7"}}})
    assert exceeded_quota([quota], gang) is None
    refusal = exceeded_quota([quota], gang, [(promised, count)])
    assert refusal is not None and f"{name} requested 4, used 0 + 4 of pods to come" in refusal


def test_gpus_of_claims_are_in_the_figures_of_nodes_once() -> None:
    devices = DeviceCluster()
    name = "gpu.nvidia.com"
    selector = f"device.driver == '{GPU_DRIVER}'"
    devices.put(device_class(name, selector, extended=PLUGIN), gpus("n0", 4), gpus("n1", 4))
    devices.put(claim("other", "n1", (GPU_DRIVER, "gpu-0")))
    informers = devices.informers
    foreign = [(n, r, a) for (n, r), a in informers.used_by_foreign().items()]
    assert sorted(foreign) == [
        ("n1", "deviceclass.resource.kubernetes.io/gpu.nvidia.com", 1),
        ("n1", PLUGIN, 1),
    ]
    used = gpus_by_node([*usage((), (), {}, {})])
    figures = node_figures(informers.all_nodes(), (), used, used, ())
    assert figures.gpus["free", "", ""] == 8
