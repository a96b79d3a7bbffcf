"""The operator and the command line give the same answer about where a pod can start."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from llmtrain_cli.commands.place import obstacles_by_node
from llmtrain_core.placement import Placement, Request, place, start_obstacles
from llmtrain_core.queueing import ClusterState
from llmtrain_core.topology.inventory import Snapshot, node_from_raw, snapshot, usage_from_pods
from llmtrain_core.topology.levels import NODE
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.foreign_usage import ForeignUsage
from llmtrain_operator.cache.records import foreign_pod, is_followed, pod_record
from llmtrain_operator.scheduler.usage import used_by_others
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import pod
from tests.support.operator_harness.scheduling import in_use, record

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
Raw = dict[str, Any]
UNITS = {"": 1, "m": Fraction(1, 1000), "Gi": 2**30, "Mi": 2**20}


def value(text: str) -> Fraction:
    digits = text.rstrip("mGMi")
    return Fraction(digits) * UNITS[text[len(digits) :]]


def raw_node(rng: random.Random, name: str) -> Raw:
    offered = {
        "cpu": rng.choice(["4", "7500m", "16"]),
        "memory": rng.choice(["8Gi", "32Gi", "20000Mi"]),
        "pods": str(rng.choice([2, 3, 8])),
        GPU: str(rng.choice([1, 2, 2, 4])),
    }
    return {
        "metadata": {"name": name, "labels": {}},
        "spec": {},
        "status": {
            "allocatable": offered,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def raw_pod(rng: random.Random, uid: str, node: str) -> Raw:
    """A pod of a job or another one, bound to a node or not, that may have ended."""
    requests = {"cpu": rng.choice(["0", "500m", "2"]), "memory": rng.choice(["512Mi", "4Gi"])}
    if rng.random() < 0.3:
        requests[GPU] = "1"
    labels = {"llmtrain.dev/job-uid": "stranger"} if rng.random() < 0.3 else {}
    return {
        "metadata": {"uid": uid, "name": uid, "namespace": "other", "labels": labels},
        "spec": {
            **({"nodeName": node} if rng.random() < 0.85 else {}),
            "containers": [{"resources": {"requests": requests}}],
            "priority": rng.choice([0, 0, 0, -5]),
        },
        "status": {"phase": rng.choice(["Running", "Running", "Pending", "Succeeded"])},
    }


def request_of(rng: random.Random) -> tuple[Request, dict[str, str]]:
    asked = {"cpu": rng.choice(["1", "3500m", "6"]), "memory": rng.choice(["1Gi", "16Gi"])}
    workers = {"gpusPerNode": 2, "nodes": 1, "command": ["x"], "resources": {"requests": asked}}
    spec = job_object("job", "ns", workers=workers, parallelism={"tensor": 2})["spec"]
    found = check("job", spec)
    assert isinstance(found, Job), found
    return Request.of(found), {**asked, GPU: "2", "pods": "1"}


def taken(pod: Raw) -> dict[str, str]:
    """What a pod takes from a job: of a foreign one of negative priority only devices."""
    found = pod["spec"]["containers"][0]["resources"]["requests"] | {"pods": "1"}
    if pod["metadata"]["labels"] or pod["spec"]["priority"] >= 0:
        return found
    return {GPU: found[GPU]} if GPU in found else {}


def free_by_hand(nodes: list[Raw], pods: list[Raw], wanted: dict[str, str]) -> set[str]:
    """The nodes where everything that is wanted is free, by a sum of their pods."""
    found = set()
    for node in nodes:
        name = node["metadata"]["name"]
        here = [
            taken(pod)
            for pod in pods
            if pod["spec"].get("nodeName") == name and pod["status"]["phase"] != "Succeeded"
        ]
        if all(
            value(node["status"]["allocatable"][resource])
            - sum(value(requests.get(resource, "0")) for requests in here)
            >= value(amount)
            for resource, amount in wanted.items()
        ):
            found.add(name)
    return found


@pytest.mark.parametrize("seed", range(200))
def test_on_random_clusters_all_give_the_same_answer(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{index}" for index in range(rng.randint(1, 5))]
    raw_nodes = [raw_node(rng, name) for name in names]
    raw_pods = [raw_pod(rng, f"p{i}", rng.choice(names)) for i in range(rng.randint(0, 12))]
    request, wanted = request_of(rng)
    expected = free_by_hand(raw_nodes, raw_pods, wanted)

    nodes = [node_from_raw(raw) for raw in raw_nodes]
    read = snapshot((NODE,), nodes, usage_from_pods(raw_pods))
    assert set(names) - obstacles_by_node(request, read).keys() == expected

    foreign, ours = ForeignUsage(), []
    for raw in raw_pods:
        if is_followed(raw, None):
            ours.append(pod_record(raw))
        else:
            foreign.change(None, foreign_pod(raw))
    cycle = ClusterState(usage=tuple(in_use([], ours)), foreign=dict(foreign.used)).used
    assert {n.name for n in nodes if not start_obstacles(request, n, cycle)} == expected
    job = record("job")
    for node in nodes:
        on_node = [pod for pod in ours if pod.node == node.name]
        used = used_by_others(job, node.name, request.needs, on_node, foreign.used)
        assert (not start_obstacles(request, node, used)) == (node.name in expected)

    placed = place(request, Snapshot((NODE,), tuple(nodes), cycle))
    assert isinstance(placed, Placement) == bool(expected)
    assert not isinstance(placed, Placement) or placed.nodes[0].name in expected


def test_the_pods_of_the_job_itself_do_not_stand_in_its_way() -> None:
    own, other = pod(0, resources=(("cpu", 4000),)), pod(1, node="n0", owner="x")
    ended = pod(2, "Failed", node="n0", owner="x")
    waiting = pod(3, "Pending", node="n0", owner="x", bound=False)
    used = used_by_others(
        record("uid"), "n0", (GPU, "cpu"), (own, other, ended, waiting), {("n0", "cpu"): 500}
    )
    assert used == {("n0", GPU): 2, ("n0", "cpu"): 500}
