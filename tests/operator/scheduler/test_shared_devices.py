"""Devices that all nodes reach are claimed once by a gang, and counted once."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.queueing import Assignment, PendingJob
from llmtrain_core.queueing.quota import charge_of, exceeded_quota, read_quota, with_claims
from llmtrain_core.queueing.quota import shared_charge as charge_of_gang
from llmtrain_operator.scheduler.cycle import decide
from llmtrain_operator.scheduler.shared_devices import SharedDevices
from tests.support.devices.cluster import GPU, DeviceCluster, placed, refused
from tests.support.devices.objects import (
    CLASSES,
    PORT_CLASS,
    PORT_DRIVER,
    PORTS,
    claim,
    claim_of_gang,
    claims_of_workers,
    device,
    gpus,
    ports,
    resource_slice,
)

pytestmark = pytest.mark.unit

PORT = f"deviceclass.resource.kubernetes.io/{PORT_CLASS}"
CLAIMS = [*claims_of_workers(), claim_of_gang(2)]


class Queue:
    """A cluster with free nodes, and what the scheduler lets through."""

    def __init__(self, shared: int) -> None:
        self.cluster = DeviceCluster(nodes=6)
        self.cluster.put(*CLASSES, PORTS, ports(shared))
        self.cluster.put(*(gpus(f"n{index}", 2) for index in range(6)))
        self.triggered = 0
        self.assignments: dict[str, Assignment] = {}
        self.shared = SharedDevices(
            self.cluster.informers,
            lambda: self.cluster.reader.shared_holders(self.assignments),
            self._trigger,
        )

    def _trigger(self) -> None:
        self.triggered += 1

    def submit(self, name: str, claims: Any = CLAIMS, **spec: Any) -> None:
        self.cluster.submit(name, claims, **spec)

    def hold(self, name: str, claims: Any = CLAIMS) -> None:
        """Add a job with nodes, which has not created its pods."""
        self.submit(name, claims, status=placed(**{GPU: 2}))

    def run(self, name: str, *devices: str) -> None:
        """Add a job with nodes whose claim has these devices."""
        self.hold(name)
        self.cluster.put_group(f"group-{name}", name)
        self.allocate(f"of-{name}", *devices, group=f"group-{name}")

    def allocate(self, uid: str, *devices: str, group: str = "") -> None:
        found = ((PORT_DRIVER, name) for name in devices)
        self.cluster.put(claim(uid, "ports", *found, group=group))

    def cycle(self) -> dict[str, Any]:
        """Return the decisions of one cycle that take effect."""
        queue = self.shared.admit(self.cluster.queue())
        found = decide(queue, self.cluster.reader.cluster_state(self.assignments))
        decided = dict(self.shared.confirm(found, queue).pending)
        self.assignments |= {u: d for u, d in decided.items() if isinstance(d, Assignment)}
        return decided


def test_a_gang_claims_devices_once_whatever_number_of_nodes_it_has() -> None:
    queue = Queue(2)
    queue.submit("job")
    decision = queue.cycle()["job"]
    assert isinstance(decision, Assignment)
    assert PORT not in decision.resources, "it is no part of a node"


def test_a_gang_waits_for_devices_that_do_not_exist() -> None:
    queue = Queue(1)
    queue.submit("job")
    assert refused(queue.cycle()["job"]) == (
        "InsufficientDevices",
        f"spec.workers.deviceClaims: the gang claims 2 {PORT} once; 1 of 1 that all nodes reach"
        " are free",
    )


def test_a_gang_with_nodes_has_its_devices_before_and_after_its_claim_is_allocated() -> None:
    queue = Queue(3)
    queue.hold("first")
    queue.submit("second")
    assert "1 of 3" in refused(queue.cycle()["second"])[1]
    queue.run("first", "port-0", "port-1")
    assert "1 of 3" in refused(queue.cycle()["second"])[1]
    queue.cluster.put(ports(4))
    assert isinstance(queue.cycle()["second"], Assignment)


def test_the_devices_of_others_are_taken() -> None:
    queue = Queue(3)
    queue.allocate("other", "port-0", "port-2")
    queue.submit("job")
    assert "1 of 3" in refused(queue.cycle()["job"])[1]
    queue.cluster.gone("other")
    assert isinstance(queue.cycle()["job"], Assignment)


def test_of_two_gangs_that_fit_at_once_one_gets_the_devices() -> None:
    queue = Queue(3)
    for name in ("a", "b"):
        queue.submit(name)
    found = queue.cycle()
    assert [uid for uid, each in found.items() if isinstance(each, Assignment)] == ["a"]
    assert refused(found["b"])[0] == "InsufficientDevices" and queue.triggered == 1
    assert refused(queue.cycle()["b"])[0] == "InsufficientDevices"
    assert queue.triggered == 1, "the next cycle knows before it decides"


def test_what_the_last_attempt_still_has_is_free_for_the_next_one_only() -> None:
    queue = Queue(2)
    queue.submit("job")
    queue.submit("other")
    queue.cluster.put_group("old", "job")
    queue.allocate("of-old", "port-0", "port-1", group="old")
    found = queue.cycle()
    assert isinstance(found["job"], Assignment)
    assert refused(found["other"])[0] == "InsufficientDevices"


def test_the_pod_group_of_another_namespace_is_not_of_the_job() -> None:
    queue = Queue(2)
    queue.submit("job", namespace="elsewhere")
    queue.cluster.put_group("forged", "job")
    queue.allocate("taken", "port-0", group="forged")
    assert refused(queue.cycle()["job"])[0] == "InsufficientDevices"


def test_a_class_with_devices_of_single_nodes_is_refused_unless_a_selector_excludes_them() -> None:
    queue = Queue(0)
    queue.cluster.put(ports(2, reach="all"))
    local = device("local", "port", reach="one")
    queue.cluster.put(resource_slice("n3", PORT_DRIVER, [local]))
    queue.submit("job")
    reason, message = refused(queue.cycle()["job"])
    assert reason == "DeviceClassNotSupported"
    assert message.startswith("spec.workers.deviceClaims: scope gang: node n3 has devices of class")
    expression = f"device.attributes['{PORT_DRIVER}'].reach == 'all'"
    exact = claim_of_gang(2, selectors=[{"cel": {"expression": expression}}])
    queue.submit("exact", [*claims_of_workers(), exact])
    assert isinstance(queue.cycle()["exact"], Assignment)


def test_a_quota_counts_the_claim_of_a_gang_once() -> None:
    queue = Queue(2)
    queue.submit("job")
    job = queue.cluster.queue()["job"]
    assert isinstance(job, PendingJob)
    pod = charge_of({"containers": [], "resourceClaims": [{"name": "a"}, {"name": "b"}]})
    gang = with_claims(pod, job.resources, job.shared.count), job.node_count

    def exceeded(**hard: str) -> str | None:
        found = {key.replace("_", "."): text for key, text in hard.items()}
        count = {"count/resourceclaims.resource.k8s.io": found.pop("claims", "9")}
        devices = f"{PORT_CLASS}.deviceclass.resource.k8s.io/devices"
        spec = {"hard": {**count, devices: found.pop("ports", "9")}}
        quota = read_quota({"metadata": {"name": "q"}, "spec": spec})
        return exceeded_quota([quota], gang, (), charge_of_gang(job.shared))

    queue.hold("placed")
    charges = [*queue.cluster.reader.promised("ns", {})]
    name = "count/resourceclaims.resource.k8s.io"
    assert [(int(pod.amounts[name]), count) for pod, count in charges] == [(1, 2), (1, 1)]
    assert exceeded(claims="3", ports="2") is None
    assert "requested 3" in str(exceeded(claims="2"))
    assert "requested 2" in str(exceeded(ports="1"))
