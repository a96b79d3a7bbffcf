"""What the start of a job costs: writes by kind, and CPU of the API server beside plain pods.

The same number of plain pods starts first, on the same nodes: the price of the pods themselves. All
writes come from the audit log. A watch of its own tells when each pod is bound; the operator has no
limit of writes, so the rates show what the start path costs. The price of one write of each kind is
measured at the end on objects of the run, with no operator: its product with the number of writes
shows what costs most.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER, USERS
from llmtrain_devcluster.kubelet.pod_watch import follow
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes, in_batches
from tests.support.operator_harness.harness import JOBS, OperatorHarness, OperatorProcess, status_of
from tests.support.operator_harness.install import install
from tests.support.operator_harness.status_writes import StatusWrites

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

NODES, GPUS = 128, 8
REPEATS = 50
"""Writes of one kind whose CPU is measured together."""
PERIODIC = frozenset({"leases", "clustertrustbundles"})
"""Resources that are written whatever the jobs do."""
COMPONENTS = ("kube-apiserver", "etcd", "kube-scheduler", "kube-controller-manager")
KINDS = {
    "configmaps": "configmaps",
    "services": "services",
    "networkpolicies": "networking.k8s.io/v1/networkpolicies",
    "events": "events",
}
"""Children of a job whose creation is priced, besides its pods."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs that are submitted at once."""

    jobs: int
    pods: int


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds by process, and writes by user and kind."""

    cpu: Mapping[str, float]
    writes: Counter[tuple[str, str]]
    at: float

    def since(self, before: Cost) -> Cost:
        cpu = {name: value - before.cpu.get(name, 0.0) for name, value in self.cpu.items()}
        return Cost(cpu, self.writes - before.writes, self.at - before.at)


class Bindings:
    """Records when each pod of a namespace is bound, from the moment it is made."""

    def __init__(self, api: Api, namespace: str):
        self._api = api
        self._namespace = namespace
        self._began = 0.0
        self._bound: dict[str, float] = {}

    async def __aenter__(self) -> Bindings:
        self._began = time.monotonic()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        async for _, pod in follow(self._api, "pods", f"metadata.namespace={self._namespace}"):
            if pod["spec"].get("nodeName"):
                self._bound.setdefault(pod["metadata"]["uid"], time.monotonic() - self._began)

    @property
    def first(self) -> float:
        """Seconds until the first pod was bound."""
        return min(self._bound.values())

    @property
    def last(self) -> float:
        """Seconds until the last pod was bound."""
        return max(self._bound.values())

    @property
    def rate(self) -> float:
        """Pods bound per second."""
        return len(self._bound) / self.last


WORKLOADS = [Workload(100, 8), Workload(12, 64)]


@pytest.fixture
def own_cluster() -> Iterator[ControlPlane]:
    """A separate control plane, so that nothing else uses its CPU, with Go's usual collector."""
    with ControlPlane(Options(audit=True, gogc=100), users=USERS) as cluster:
        asyncio.run(install(cluster))
        yield cluster


@pytest.mark.parametrize("load", WORKLOADS, ids=lambda load: f"{load.jobs}_jobs_of_{load.pods}")
async def test_start(own_cluster: ControlPlane, load: Workload, tmp_path: Path) -> None:
    operator = OperatorProcess(own_cluster, tmp_path, "--writes-per-second=10000")
    async with own_cluster.client("admin") as api:
        await api.create("namespaces", {"metadata": {"name": "start"}})
        await api.wait_for("serviceaccounts", "default", lambda found: found is not None, "start")
        nodes = ScriptedNodes(api, PodScript(exit_after=None))
        nodes.start()
        harness = OperatorHarness(api, "start", nodes, "start")
        try:
            await harness.add_nodes(*[{} for _ in range(NODES)], gpus=GPUS)
            await asyncio.to_thread(operator.start, 120)
            await _start_jobs(harness, Workload(1, 2))
            [shape, _] = await harness.pods()
            await _delete_jobs(harness)

            def cost() -> Cost:
                return _cost(own_cluster, operator)

            async with Bindings(api, "start") as plainly:
                plain = await _measure(cost, _start_plain(api, shape, load))
            await _delete_pods(harness)
            async with Bindings(api, "start") as bound, StatusWrites(api, "start") as statuses:
                started = await _measure(cost, _start_jobs(harness, load))
            operator.kill()
            prices = await _prices(own_cluster, harness, load)
            await asyncio.to_thread(operator.start, 120)
            deleted = await _measure(cost, _delete_jobs(harness))
        finally:
            operator.kill()
            await nodes.stop()
    _report(load, plain, started, deleted, prices)
    for change, count in statuses.counts.most_common():
        print(f"  start: statuses that changed {change}: {count / load.jobs:.2f}")
    for name, found in (("plain pods", plainly), ("jobs", bound)):
        text = f"  {name}: {found.rate:.0f} pods bound per second, the first after"
        print(f"{text} {found.first:.2f} s, the last after {found.last:.2f} s")
    print(f"  rate over that of plain pods: {bound.rate / plainly.rate:.2f}")


async def _measure(cost: Callable[[], Cost], work: Awaitable[None]) -> Cost:
    before = cost()
    await work
    # Events and the last statuses follow within a moment.
    await asyncio.sleep(3)
    return cost().since(before)


def _cost(cluster: ControlPlane, operator: OperatorProcess) -> Cost:
    cpu = {name: _component_cpu(cluster, name) for name in COMPONENTS}
    cpu["operator"] = _cpu_seconds(operator.pid)
    events = [e for e in cluster.writes() if e["objectRef"]["resource"] not in PERIODIC]
    writes = Counter((_writer(event), _kind(event)) for event in events)
    return Cost(cpu, writes, time.monotonic())


def _component_cpu(cluster: ControlPlane, name: str) -> float:
    pid = cluster.component_pid(name)
    assert pid is not None, name
    return _cpu_seconds(pid)


def _cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _writer(event: Object) -> str:
    user = str(event["user"]["username"])
    if user == OPERATOR_USER:
        return "operator"
    if user == "admin":
        is_pod = event["objectRef"]["resource"] == "pods"
        return "kubelet" if is_pod and event["verb"] in ("patch", "delete") else "user"
    return user.rpartition(":")[2]


def _kind(event: Object) -> str:
    reference = event["objectRef"]
    parts = (reference["resource"], reference.get("subresource"))
    trial = " (dry run)" if "dryRun=" in event["requestURI"] else ""
    return f"{event['verb']} {'/'.join(filter(None, parts))}{trial}"


def _plain(shape: Object, name: str, node: str) -> Object:
    """Return a pod that looks like one of a job, but is not."""
    pod = copy.deepcopy({"metadata": {"name": name}, "spec": shape["spec"]})
    spec = pod["spec"]
    for key in ("nodeName", "hostname", "subdomain", "volumes", "tolerations"):
        spec.pop(key, None)
    for container in spec["containers"]:
        container.pop("volumeMounts", None)
    affinity = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"] = [node]
    return pod


async def _start_plain(api: Api, shape: Object, load: Workload) -> None:
    async def create(index: int) -> None:
        pod = _plain(shape, f"plain-{index}", f"node-start-{index % NODES}")
        await api.create("pods", pod, "start")

    total = load.jobs * load.pods
    await in_batches(create(index) for index in range(total))

    async def running() -> bool:
        pods = await api.list("pods", "start", fields="status.phase=Running")
        return len(pods) == total

    await _until(running)


async def _start_jobs(harness: OperatorHarness, load: Workload) -> None:
    """Submit jobs at once and wait until all run."""
    spec: dict[str, Any] = {
        "workers": {"nodes": load.pods, "gpusPerNode": 1},
        "parallelism": {"tensor": 1, "data": load.pods},
        "training": {"steps": 100, "globalBatchSize": load.pods, "microBatchSize": 1},
    }

    async def submit(index: int) -> None:
        await harness.submit(f"job-{index}", **copy.deepcopy(spec))

    await in_batches(submit(index) for index in range(load.jobs))

    async def running() -> bool:
        jobs = await harness.api.list(JOBS, harness.namespace)
        return sum(status_of(job).get("phase") == "Running" for job in jobs) == load.jobs

    await _until(running)


async def _delete_jobs(harness: OperatorHarness) -> None:
    api, namespace = harness.api, harness.namespace
    jobs = await api.list(JOBS, namespace)
    await in_batches(_delete(api, JOBS, job) for job in jobs)

    async def gone() -> bool:
        return not await api.list(JOBS, namespace) and not await harness.pods()

    await _until(gone)


async def _delete_pods(harness: OperatorHarness) -> None:
    await in_batches(_delete(harness.api, "pods", pod) for pod in await harness.pods())

    async def gone() -> bool:
        return not await harness.pods()

    await _until(gone)


async def _delete(api: Api, resource: str, found: Object) -> None:
    metadata = found["metadata"]
    await api.delete(resource, metadata["name"], metadata["namespace"], missing_ok=True)


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 300.0) -> None:
    """Poll slowly: each list costs CPU of the API server."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(2)


async def _prices(
    cluster: ControlPlane, harness: OperatorHarness, load: Workload
) -> dict[str, float]:
    """Return the CPU seconds of the API server per write, by kind."""
    api, namespace = harness.api, harness.namespace
    prices: dict[str, float] = {}

    async def price(kind: str, write: Callable[[int], Awaitable[Any]]) -> None:
        before = _component_cpu(cluster, "kube-apiserver")
        for index in range(REPEATS):
            await write(index)
        prices[kind] = (_component_cpu(cluster, "kube-apiserver") - before) / REPEATS

    async def patch_status(index: int) -> None:
        progress = {"step": index, "totalSteps": 100}
        body = {"status": {"revision": 1000 + index, "progress": progress}}
        await api.patch(JOBS, "job-0", body, namespace, subresource="status")

    async def patch_job(index: int) -> None:
        body = {"metadata": {"annotations": {"example.com/write": str(index)}}}
        await api.patch(JOBS, "job-0", body, namespace)

    await price("patch llmtrainingjobs/status", patch_status)
    await price("patch llmtrainingjobs", patch_job)
    pod = (await harness.pods())[0]
    gated = {**pod["spec"], "schedulingGates": [{"name": "example.com/gate"}]}
    gated.pop("nodeName", None)
    samples = {"pods": ("pods", {**pod, "spec": gated})}
    for plural, resource in KINDS.items():
        found = await api.list(resource, namespace)
        samples[plural] = (resource, found[0])
    for plural, (resource, sample) in samples.items():

        async def create(index: int, resource: str = resource, sample: Object = sample) -> None:
            await api.create(resource, _copy_of(sample, f"priced-{index}"), namespace)

        await price(f"create {plural}", create)
        for index in range(REPEATS):
            await api.delete(resource, f"priced-{index}", namespace, grace_seconds=0)
    return prices


def _copy_of(sample: Object, name: str) -> Object:
    """Return an object of the same size that no controller acts on."""
    body = copy.deepcopy({k: v for k, v in sample.items() if k not in ("status", "metadata")})
    for key in ("clusterIP", "clusterIPs"):
        if body.get("spec", {}).get(key) not in (None, "None", ["None"]):
            del body["spec"][key]
    labels = {
        f"x-{k.rpartition('/')[2]}": v for k, v in sample["metadata"].get("labels", {}).items()
    }
    return {**body, "metadata": {"name": name, "labels": labels}}


def _report(
    load: Workload, plain: Cost, started: Cost, deleted: Cost, prices: Mapping[str, float]
) -> None:
    jobs, pods = load.jobs, load.jobs * load.pods
    print(f"\n{jobs} jobs of {load.pods} pods, all per job")
    for name, cost in (("plain pods", plain), ("jobs", started), ("deletion", deleted)):
        cpu = ", ".join(f"{k} {v / jobs * 1000:.0f} ms" for k, v in cost.cpu.items())
        print(f"  {name}: {cost.at:.0f} s in all; CPU {cpu}")
    for name, cost in (("plain pods", plain), ("start", started), ("deletion", deleted)):
        for (writer, kind), count in sorted(cost.writes.items()):
            price = prices.get(kind)
            total = "" if price is None else f"; {price * 1000:.1f} ms each"
            total += "" if price is None else f", {count / jobs * price * 1000:.0f} ms"
            print(f"  {name}: {writer} {kind}: {count / jobs:.2f}{total}")
    extra = started.cpu["kube-apiserver"] - plain.cpu["kube-apiserver"]
    ratio = started.cpu["kube-apiserver"] / plain.cpu["kube-apiserver"]
    print(f"  API server: {extra / jobs * 1000:.0f} ms more than the pods alone, {ratio:.2f} times")
    assert started.writes["operator", "create pods"] == pods, "each pod is created once"
