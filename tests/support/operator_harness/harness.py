"""What tests of the operator work with: the process, and one namespace with nodes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from llmtrain_devcluster.api import WAIT_SECONDS, Api, ApiStatusError, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.processes import free_ports
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes
from tests.support.paths import ROOT

JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
DISRUPTION_BUDGETS = "policy/v1/poddisruptionbudgets"
SYSTEM = "llmtrain-system"
LEASE = ("--retry-period=0.5",)
QUICK_LEASE = ("--lease-duration=3", "--renew-deadline=2.5", "--retry-period=0.3")
SHORT_LEASE = ("--lease-duration=8", "--renew-deadline=7", "--retry-period=0.5")
"""For tests that wait for it to run out."""
PATIENT_LEASE = ("--lease-duration=120", "--renew-deadline=100", "--retry-period=2")
"""For tests that keep the API server or the machine busy, or cut the network."""
LOST = 3
"""Exit code of an operator that lost its lease, as one on a machine that stands still does."""


class OperatorProcess:
    """`python -m llmtrain_operator` as a child of this process."""

    def __init__(self, cluster: ControlPlane, folder: Path, *extra: str, user: str = OPERATOR_USER):
        self.log = folder / "operator.log"
        self.metrics_port, self.health_port = free_ports(2)
        self.kubeconfig = cluster.kubeconfig(user, folder / "kubeconfig")
        self._arguments = [
            f"--kubeconfig={self.kubeconfig}",
            "--bind=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            f"--health-port={self.health_port}",
            "--progress-seconds=1",
            "--node-lost-seconds=1",
            *LEASE,
            *extra,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        root = ROOT
        path = os.pathsep.join(str(root / part) for part in ("core", "operator"))
        with self.log.open("ab") as out:
            self._log_start = out.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmtrain_operator", *self._arguments],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            )

    def start(self, seconds: float = 120.0) -> None:
        """Start it and wait until it leads and is ready."""
        self.spawn()
        self.await_lead(seconds)

    def await_lead(self, seconds: float = 120.0) -> None:
        """Wait until it leads and is ready; it may have been spawned long before."""
        deadline = time.monotonic() + seconds
        while not (self.leads() and self.ask(self.health_port, "/readyz") == 200):
            if not self.alive():
                assert self.wait(1) == LOST, f"the operator ended:\n{self.tail()}"
                self.spawn()
            assert time.monotonic() < deadline, f"the operator is not ready:\n{self.tail()}"
            time.sleep(0.1)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """End it without any chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int | None:
        """End it politely."""
        if self._process is None or self._process.poll() is not None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def ask(self, port: int, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    async def shows(self, text: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the metrics contain a text: they follow the status within milliseconds."""
        deadline = time.monotonic() + seconds
        while text not in (found := self.metrics()):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)

    async def logs(self, text: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the process that runs now has logged a text."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_bytes()[self._log_start :].decode(errors="replace"):
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.tail()}"
            await asyncio.sleep(0.1)

    def leads(self) -> bool:
        try:
            return "llmtrain_operator_leader 1.0" in self.metrics()
        except OSError:
            return False

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


ENDLESS = PodScript(exit_after=None)
"""A pod that runs until it is deleted."""
LARGE: dict[str, Any] = {
    "model": {"preset": "llama3-8b"},
    "training": {"steps": 100, "globalBatchSize": 8, "microBatchSize": 2},
}
"""Of `job_object`: 2 x 2 GPUs that need 95 GiB each without margins, more than an H100 has."""


def job_object(name: str, namespace: str, **spec: Any) -> Object:
    """Return a job of two nodes with two GPUs each, changed by `spec`."""
    workers = {
        "gpusPerNode": 2,
        "nodes": 2,
        "image": "example.com/trainer:1",
        **spec.pop("workers", {}),
    }
    whole = {
        "model": {"preset": "tiny"},
        "data": {"sources": [{"name": "text", "uri": "file:///data"}]},
        "training": {"steps": 100, "globalBatchSize": 8, "microBatchSize": 1},
        "parallelism": {"tensor": 2, "data": workers["nodes"]},
        "workers": workers,
        **spec,
    }
    return {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": whole,
    }


def foreign_pod(name: str, node: str) -> Object:
    """Return a pod of no job that requests all GPUs of a node."""
    amount = {"nvidia.com/gpu": "2"}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": amount, "limits": amount},
    }
    return {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [container]}}


def condition(job: Object | None, kind: str) -> Object:
    """Return a condition of a job; empty if it has none of that type."""
    conditions = (job or {}).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def is_renewal(event: Object) -> bool:
    """Whether an audit event is a write of the operator's lease."""
    return bool(event["objectRef"]["resource"] == "leases")


def status_of(job: Object | None) -> Object:
    found: Object = (job or {}).get("status", {})
    return found


class OperatorHarness:
    """One namespace, with nodes that only its jobs select."""

    def __init__(self, api: Api, namespace: str, nodes: ScriptedNodes, tag: str):
        self.api = api
        self.namespace = namespace
        self.nodes = nodes
        self.tag = tag
        self.node_names: list[str] = []

    async def add_nodes(
        self, *labels: dict[str, str], gpus: int = 2, start: int = 0, pods: int = 110
    ) -> list[str]:
        """Add nodes of this harness; one for each set of labels."""
        names = [f"node-{self.tag}-{start + index}" for index in range(len(labels))]
        await self.nodes.add(
            *(
                NodeSpec(name, {"harness": self.tag, **extra}, gpus=gpus, pods=pods)
                for name, extra in zip(names, labels, strict=True)
            )
        )
        self.node_names += names
        return names

    async def submit(self, name: str, **spec: Any) -> Object:
        """Create a job that selects the nodes of this harness."""
        workers = {"nodeSelector": {"harness": self.tag}, **spec.pop("workers", {})}
        body = job_object(name, self.namespace, workers=workers, **spec)
        return await self.api.create(JOBS, body, self.namespace)

    async def run_on_two_nodes(self, name: str, script: PodScript = ENDLESS, **spec: Any) -> Object:
        """Add two nodes, and run a job that fills them; return it as it runs."""
        await self.add_nodes({}, {})
        self.nodes.default = script
        await self.submit(name, **spec)
        return await self.phase(name, "Running")

    async def wait(
        self, name: str, until: Callable[[Object | None], bool], seconds: float = WAIT_SECONDS
    ) -> Object:
        return await self.api.wait_for(JOBS, name, until, self.namespace, seconds=seconds)

    async def phase(self, name: str, *phases: str, seconds: float = WAIT_SECONDS) -> Object:
        """Wait until a job is in one of the phases."""
        return await self.wait(name, lambda job: status_of(job).get("phase") in phases, seconds)

    async def runs(self, name: str, attempt: int, seconds: float = WAIT_SECONDS) -> Object:
        """Wait until this attempt of a job runs."""

        def there(job: Object | None) -> bool:
            status = status_of(job)
            return status.get("phase") == "Running" and status.get("attempt", 0) == attempt

        return await self.wait(name, there, seconds)

    async def holds(self, name: str, kind: str, seconds: float = WAIT_SECONDS) -> Object:
        """Wait until a condition of a job is true."""
        return await self.wait(name, lambda j: condition(j, kind).get("status") == "True", seconds)

    async def reason(
        self, name: str, kind: str, reason: str, seconds: float = WAIT_SECONDS
    ) -> Object:
        """Wait until a condition of a job has this reason."""
        return await self.wait(name, lambda j: condition(j, kind).get("reason") == reason, seconds)

    async def gone(self, name: str, seconds: float = WAIT_SECONDS) -> None:
        await self.wait(name, lambda job: job is None, seconds)

    async def delete(self, name: str, seconds: float = 20.0) -> None:
        """Delete a job and its pods, and wait until they are gone.

        The garbage collector looks for new kinds every 30 s, so it may not know jobs yet.
        """
        await self.api.delete(JOBS, name, self.namespace, missing_ok=True)
        deadline = time.monotonic() + seconds
        while pods := await self.pods(f"llmtrain.dev/job-name={name}"):
            for pod in pods:
                if "deletionTimestamp" not in pod["metadata"]:
                    pod_name = pod["metadata"]["name"]
                    await self.api.delete("pods", pod_name, self.namespace, missing_ok=True)
            assert time.monotonic() < deadline, [pod["metadata"]["name"] for pod in pods]
            await asyncio.sleep(0.1)

    async def patch(self, name: str, body: Object) -> Object:
        return await self.api.patch(JOBS, name, body, self.namespace)

    async def patch_pod(self, name: str, body: Object) -> Object:
        return await self.api.patch("pods", name, body, self.namespace)

    async def job(self, name: str) -> Object:
        return await self.api.get(JOBS, name, self.namespace)

    async def pods(self, labels: str = "") -> list[Object]:
        return await self.api.list("pods", self.namespace, labels=labels)

    async def pod_count(self, count: int, seconds: float = WAIT_SECONDS) -> list[Object]:
        deadline = time.monotonic() + seconds
        while len(pods := await self.pods()) != count:
            assert time.monotonic() < deadline, [p["metadata"]["name"] for p in pods]
            await asyncio.sleep(0.1)
        return pods

    async def children(self) -> list[str]:
        """Names of all that jobs of the namespace left there."""
        found = []
        for resource in (
            "pods",
            "services",
            "configmaps",
            "networking.k8s.io/v1/networkpolicies",
            DISRUPTION_BUDGETS,
        ):
            found += [
                f"{resource}/{item['metadata']['name']}"
                for item in await self.api.list(
                    resource, self.namespace, labels="llmtrain.dev/job-uid"
                )
            ]
        return found

    async def clear(self) -> None:
        """Delete all jobs and their pods, also those that a finalizer keeps."""
        for job in await self.api.list(JOBS, self.namespace):
            name = job["metadata"]["name"]
            await self.api.delete(JOBS, name, self.namespace, missing_ok=True)
        for pod in await self.pods():
            await self.api.delete(
                "pods", pod["metadata"]["name"], self.namespace, grace_seconds=0, missing_ok=True
            )
        for job in await self.api.list(JOBS, self.namespace):
            name = job["metadata"]["name"]
            try:
                await self.gone(name, seconds=3)
            except TimeoutError:
                with contextlib.suppress(ApiStatusError):
                    await self.patch(name, {"metadata": {"finalizers": None}})


@contextlib.asynccontextmanager
async def reporting(pod: Object, report: Object) -> AsyncIterator[None]:
    """Answer `/status` at a pod's address, as its trainer would, with what `report` holds then."""

    async def status(_request: web.Request) -> web.Response:
        return web.json_response(report)

    app = web.Application()
    app.router.add_get("/status", status)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, pod["status"]["podIP"], 9400).start()
        yield
    finally:
        await runner.cleanup()


async def mark_node(api: Api, node: str, kind: str, status: str, reason: str) -> None:
    """Set a condition of a node, as an agent of node health does."""
    found = {"type": kind, "status": status, "reason": reason, "message": "scripted"}
    body = {"status": {"conditions": [found]}}
    await api.patch("nodes", node, body, subresource="status", kind="strategic")


def message(reason: str, text: str, field: str, remedy: str, code: int) -> str:
    """Return a termination message as the contract describes it."""
    error = {
        "reason": reason,
        "message": text,
        "field": field,
        "remedy": remedy,
        "rank": 0,
        "exitCode": code,
    }
    return json.dumps({"error": error})
