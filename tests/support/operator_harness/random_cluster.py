"""Random clusters under pressure, and by hand: the nodes on which a pod of a job can start.

The calculation by hand shares no code with the product.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from tests.support.operator_harness.harness import job_object

GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
Raw = dict[str, Any]
UNITS: dict[str, Fraction | int] = {"": 1, "m": Fraction(1, 1000), "Gi": 2**30, "Mi": 2**20}


@lru_cache
def value(text: str) -> Fraction:
    digits = text.rstrip("mGMi")
    return Fraction(digits) * UNITS[text[len(digits) :]]


@dataclass(frozen=True)
class RandomCluster:
    """Nodes, pods and a job, as the API server has them."""

    nodes: tuple[Raw, ...]
    pods: tuple[Raw, ...]
    job: Raw

    @property
    def size(self) -> int:
        return int(self.job["spec"]["workers"]["nodes"])

    @property
    def names(self) -> set[str]:
        return {node["metadata"]["name"] for node in self.nodes}

    @property
    def on_efa(self) -> set[str]:
        """Nodes whose network is EFA. A job of one node needs no network."""
        found = {n["metadata"]["name"] for n in self.nodes if EFA in n["status"]["allocatable"]}
        return found if self.size > 1 else set()

    def avoided(self) -> set[str]:
        """The one node that the limit of so few nodes permits: drained first, then newest."""
        found = [
            (bool(node["spec"].get("unschedulable")), c["lastTransitionTime"], name)
            for node in self.nodes
            for name in (node["metadata"]["name"],)
            for c in node["status"]["conditions"]
            if c["type"] == "GPUMissing"
        ]
        return {max(found)[2]} if found else set()

    def startable(self, efa: str = "0") -> set[str]:
        """The nodes on which a pod of the job can start that gets so many EFA devices."""
        requests = self.job["spec"]["workers"]["resources"]["requests"]
        wanted = {**requests, GPU: "2", EFA: efa, "pods": "1"}
        avoided = self.avoided()
        return {
            node["metadata"]["name"]
            for node in self.nodes
            if is_open(node)
            and node["metadata"]["name"] not in avoided
            and all(self.free(node, name) >= value(amount) for name, amount in wanted.items())
        }

    def free(self, node: Raw, resource: str) -> Fraction:
        used = [
            taken(pod).get(resource, Fraction(0))
            for pod in self.pods
            if pod["spec"].get("nodeName") == node["metadata"]["name"]
            and pod["status"]["phase"] != "Succeeded"
        ]
        return value(node["status"]["allocatable"].get(resource, "0")) - sum(used)

    def networks(self) -> dict[str, set[str]]:
        """The nodes on which the gang can start, by the network that it has there."""
        return {
            "aws-efa": self.startable("2") & self.on_efa,
            "tcp": self.startable() - self.on_efa,
        }

    def fits(self) -> bool:
        return any(len(nodes) >= self.size for nodes in self.networks().values())


def is_open(node: Raw) -> bool:
    ready = {"type": "Ready", "status": "True"} in node["status"]["conditions"]
    taints = [taint for taint in node["spec"].get("taints", ()) if taint["key"] != GPU]
    return ready and not node["spec"].get("unschedulable") and not taints


def taken(pod: Raw) -> dict[str, Fraction]:
    """What a pod takes from a job: of a foreign one of negative priority only devices."""
    spec, status = pod["spec"], pod["status"]
    total = [{"pods": "1"}, spec.get("overhead", {})]
    reported = {c["name"]: c["allocatedResources"] for c in status.get("containerStatuses", ())}
    refused = any(c["reason"] == "Infeasible" for c in status.get("conditions", ()))
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        wanted = container["resources"]["requests"]
        had = reported.get(container["name"], wanted)
        names = (*had,) if refused else {*wanted, *had}
        total.append({n: _larger(had.get(n), None if refused else wanted.get(n)) for n in names})
    found = {
        name: sum((value(part.get(name, "0")) for part in total), Fraction(0))
        for name in {name for part in total for name in part}
    }
    if not pod["metadata"]["labels"] and spec["priority"] < 0:
        return {name: amount for name, amount in found.items() if "/" in name}
    return found


def _larger(*amounts: str | None) -> str:
    return max((amount for amount in amounts if amount is not None), key=value)


PLENTY = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}
"""More than all pods of a cluster request."""


def without(cluster: RandomCluster, part: str) -> RandomCluster:
    """Return the cluster without one kind of pressure.

    The kinds are `health`, `network`, `resize`, and each resource in `PLENTY`.
    """
    if part == "health":
        nodes = tuple(
            {**node, "status": {**node["status"], "conditions": node["status"]["conditions"][:1]}}
            for node in cluster.nodes
        )
        return replace(cluster, nodes=nodes)
    if part == "network" or part in PLENTY:
        offered = [dict(node["status"]["allocatable"]) for node in cluster.nodes]
        for amounts in offered:
            if part == "network":
                amounts.pop(EFA, None)
            else:
                amounts[part] = PLENTY[part]
        nodes = tuple(
            {**node, "status": {**node["status"], "allocatable": amounts}}
            for node, amounts in zip(cluster.nodes, offered, strict=True)
        )
        return replace(cluster, nodes=nodes)
    pods = tuple({**p, "status": {"phase": p["status"]["phase"]}} for p in cluster.pods)
    return replace(cluster, pods=pods)


def random_cluster(seed: int) -> RandomCluster:
    rng = random.Random(seed)
    names = [f"n{index}" for index in range(rng.randint(1, 6))]
    has_efa = rng.random() < 0.5
    nodes = tuple(_node(rng, name, has_efa and rng.random() < 0.6) for name in names)
    pods = tuple(_pod(rng, f"p{i}", rng.choice(nodes)) for i in range(rng.randint(0, 12)))
    size = rng.choice([1, 1, 2, 2, 3])
    asked = {"cpu": rng.choice(["1", "3500m", "6"]), "memory": rng.choice(["1Gi", "16Gi"])}
    workers = {"gpusPerNode": 2, "nodes": size, "command": ["x"], "resources": {"requests": asked}}
    job = job_object("job", "ns", workers=workers, parallelism={"tensor": 2, "data": size})
    job["metadata"] |= {
        "uid": "job",
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return RandomCluster(nodes, pods, job)


def _node(rng: random.Random, name: str, efa: bool) -> Raw:
    offered = {
        "cpu": rng.choice(["4", "7500m", "16", "16"]),
        "memory": rng.choice(["8Gi", "32Gi", "20000Mi"]),
        "pods": str(rng.choice([2, 3, 8])),
        GPU: "4" if efa else str(rng.choice([1, 2, 4, 4])),
        **({EFA: "4"} if efa else {}),
    }
    spec: Raw = {}
    if rng.random() < 0.1:
        spec["unschedulable"] = True
    if rng.random() < 0.15:
        key = rng.choice([GPU, "dedicated"])
        spec["taints"] = [{"key": key, "effect": "NoSchedule"}]
    conditions = [{"type": "Ready", "status": "False" if rng.random() < 0.05 else "True"}]
    if rng.random() < 0.3:
        since = f"2026-01-01T{name[1:]:>02}:{rng.randrange(60):02}:00Z"
        found = {"type": "GPUMissing", "status": "True", "reason": "GPUMissing1"}
        conditions.append({**found, "lastTransitionTime": since})
    return {
        "kind": "Node",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {}},
        "spec": spec,
        "status": {"allocatable": offered, "conditions": conditions},
    }


def _pod(rng: random.Random, uid: str, node: Raw) -> Raw:
    """A pod of a job or another one, bound to a node or not, that may have ended."""
    requests = {"cpu": rng.choice(["0", "500m", "3"]), "memory": rng.choice(["512Mi", "4Gi"])}
    for device in (GPU, EFA):
        if device in node["status"]["allocatable"] and rng.random() < 0.3:
            requests[device] = "1"
    spec: Raw = {
        "containers": [{"name": "main", "resources": {"requests": requests}}],
        "priority": rng.choice([0, 0, 0, -5]),
    }
    if rng.random() < 0.85:
        spec["nodeName"] = node["metadata"]["name"]
    if rng.random() < 0.2:
        spec["overhead"] = {"cpu": "250m"}
    if rng.random() < 0.2:
        side = {"name": "side", "resources": {"requests": {"cpu": "500m"}}}
        spec["initContainers"] = [{**side, "restartPolicy": "Always"}]
    status: Raw = {"phase": rng.choice(["Running", "Running", "Pending", "Succeeded"])}
    if rng.random() < 0.6:
        memory = rng.choice(["512Mi", "7Gi"])
        resized = {**requests, "cpu": rng.choice(["250m", "5"]), "memory": memory}
        status["containerStatuses"] = [{"name": "main", "allocatedResources": resized}]
        if rng.random() < 0.5 and "initContainers" not in spec:
            reason = rng.choice(["Infeasible", "Deferred"])
            pending = {"type": "PodResizePending", "status": "True", "reason": reason}
            status["conditions"] = [pending]
    labels = {"llmtrain.dev/job-uid": "stranger"} if rng.random() < 0.3 else {}
    metadata = {"uid": uid, "name": uid, "namespace": "other", "resourceVersion": "1"}
    return {
        "kind": "Pod",
        "metadata": {**metadata, "labels": labels},
        "spec": spec,
        "status": status,
    }
