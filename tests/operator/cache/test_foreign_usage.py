"""What foreign pods use, as their informer reports it, and what a record of a pod takes."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from llmtrain_core.topology.inventory import Usage, usage_from_pods
from llmtrain_operator.cache.foreign_usage import ForeignUsage
from llmtrain_operator.cache.records import ForeignPod, foreign_pod, pod_record

pytestmark = pytest.mark.unit

MAX_RECORD_BYTES = 80


def raw_pod(node: str = "n0", phase: str = "Running", **requests: str) -> dict[str, Any]:
    return {
        "metadata": {"uid": "p", "name": "p", "namespace": "other"},
        "spec": {"nodeName": node, "containers": [{"resources": {"requests": requests}}]},
        "status": {"phase": phase},
    }


def test_a_foreign_pod_holds_everything_that_it_requests() -> None:
    found = foreign_pod(raw_pod(cpu="1500m", memory="1Gi"))
    assert found == ForeignPod("n0", (("cpu", 1500), ("memory", 2**30), ("pods", 1)))
    assert not found.has_devices
    assert foreign_pod(raw_pod("")) is None, "not bound"
    assert foreign_pod(raw_pod(phase="Succeeded")) is None, "ended"
    placeholder = raw_pod(cpu="60")
    placeholder["spec"]["priority"] = -10
    assert foreign_pod(placeholder) is None, "kube-scheduler preempts it"
    gpu = foreign_pod(raw_pod(**{"nvidia.com/gpu": "1"}))
    assert gpu is not None and gpu.has_devices


def test_the_sums_are_those_of_the_pods_that_exist() -> None:
    random_ = random.Random(16)
    usage, pods = ForeignUsage(), dict[int, ForeignPod]()
    for _ in range(500):
        uid = random_.randrange(40)
        node, cpu = f"n{random_.randrange(4)}", f"{random_.randrange(5)}"
        new = foreign_pod(raw_pod(node, cpu=cpu)) if random_.random() < 0.6 else None
        usage.change(pods.pop(uid, None), new)
        if new is not None:
            pods[uid] = new
    expected = Counter[tuple[str, str]]()
    for pod in pods.values():
        for resource, amount in pod.resources:
            expected[pod.node, resource] += amount
    assert usage.used == expected
    for pod in pods.values():
        usage.change(pod, None)
    assert usage.used == {}


def test_a_record_of_a_foreign_pod_is_small() -> None:
    """A cluster of 5,000 nodes has 150,000 of them."""
    kinds = [raw_pod(f"n{i % 50}", cpu=f"{i % 7 + 1}00m", memory="64Mi") for i in range(700)]
    warm = [foreign_pod(raw) for raw in kinds]
    tracemalloc.start()
    records = [foreign_pod(raw) for raw in kinds * 10]
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\n{size / len(records):.0f} bytes of a record of a foreign pod")
    assert len(warm) and size / len(records) < MAX_RECORD_BYTES


@pytest.mark.parametrize(("reason", "cpu"), [("Deferred", 8000), ("Infeasible", 2000)])
def test_all_count_a_resized_pod_alike(reason: str, cpu: int) -> None:
    raw = raw_pod(cpu="8", **{"nvidia.com/gpu": "1"})
    raw["spec"]["containers"][0]["name"] = "main"
    raw["status"] |= {
        "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
        "containerStatuses": [
            {"name": "main", "allocatedResources": {"cpu": "2", "nvidia.com/gpu": "1"}}
        ],
    }
    expected = {"cpu": cpu, "nvidia.com/gpu": 1, "pods": 1}
    foreign = foreign_pod(raw)
    assert foreign is not None and dict(foreign.resources) == expected
    assert dict(pod_record(raw).resources) == expected
    assert usage_from_pods([raw]) == [Usage("n0", name, n) for name, n in expected.items()]
    raw["spec"]["priority"] = -1
    assert foreign_pod(raw) == ForeignPod("n0", (("nvidia.com/gpu", 1),))


def test_since_when_kube_scheduler_refuses_a_pod_is_known() -> None:
    raw = raw_pod("")
    scheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available",
        "lastTransitionTime": "2026-01-01T12:00:00Z",
    }
    refused = pod_record({**raw, "status": {"phase": "Pending", "conditions": [scheduled]}})
    assert (refused.reason, refused.refused_since) == ("Unschedulable", "2026-01-01T12:00:00Z")
    nominated = {"phase": "Pending", "conditions": [scheduled], "nominatedNodeName": "n0"}
    assert pod_record({**raw, "status": nominated}).refused_since == "", "others make way for it"
    gated = {**scheduled, "reason": "SchedulingGated"}
    waiting = pod_record({**raw, "status": {"phase": "Pending", "conditions": [gated]}})
    assert waiting.refused_since == ""
