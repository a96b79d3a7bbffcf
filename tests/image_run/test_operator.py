"""The operator starts as its image runs it: an unknown user, and not one writable folder."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.processes import free_ports
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.cpu_time import slowness
from tests.support.image_run.container import Container, compile_modules, cpu_seconds
from tests.support.operator_harness.harness import SYSTEM, OperatorHarness
from tests.support.operator_harness.install import DEPLOY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOMS = ("core", "operator")
ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
START_CPU_SECONDS = 2.0
"""From exec to /readyz as the leader, on a quiet core."""
STARTS_WITHIN = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    """The container of the operator."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int
    health_port: int

    def answer(self, port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def await_ready(self) -> None:
        """Wait until it leads and is ready."""
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            leads = "llmtrain_operator_leader 1.0" in self.answer(self.metrics_port, "/metrics")
            if leads and self.answer(self.health_port, "/readyz") == "ok":
                return
            ended = self.process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


async def _account(cluster: ControlPlane, folder: Path) -> Path:
    """Return the folder that the kubelet mounts for the service account of the operator."""
    async with cluster.client("admin") as api:
        name = {"metadata": {"name": "llmtrain-operator", "namespace": SYSTEM}}
        await api.apply({"apiVersion": "v1", "kind": "ServiceAccount", **name}, SYSTEM)
        for document in yaml.safe_load_all(DEPLOY.read_text()):
            if document["kind"].endswith("RoleBinding"):
                document["metadata"]["name"] = f"image-run-{document['metadata']['name']}"
                await api.apply(document, document["metadata"].get("namespace"))
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/llmtrain-operator/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        made = await api.request("POST", path, body=request)
    folder.mkdir()
    (folder / "token").write_text(made["status"]["token"])
    (folder / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    (folder / "namespace").write_text(SYSTEM)
    return folder


@pytest.fixture(scope="module")
def container(
    installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("image")
    compiled = compile_modules(ROOMS, "llmtrain_operator.__main__", folder / "compiled")
    account = asyncio.run(_account(installed, folder / "account"))
    metrics_port, health_port = free_ports(2)
    server = urlsplit(installed.url)
    image = Container(
        rooms=ROOMS,
        compiled=compiled,
        binds={ACCOUNT: account},
        env={
            "KUBERNETES_SERVICE_HOST": str(server.hostname),
            "KUBERNETES_SERVICE_PORT": str(server.port),
            "LLMTRAIN_OPERATOR_METRICS_PORT": str(metrics_port),
            "LLMTRAIN_OPERATOR_HEALTH_PORT": str(health_port),
        },
    )
    log = folder / "operator.log"
    process = image.start(["-m", "llmtrain_operator"], log)
    try:
        yield Running(process, log, metrics_port, health_port)
    finally:
        process.kill()
        process.wait()


async def test_it_starts_and_runs_a_job(
    container: Running, api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    slow = slowness()
    container.await_ready()
    used = cpu_seconds(container.process.pid)
    quiet = used / ((slow + slowness()) / 2)
    print(f"\nfrom exec to /readyz: {used:.2f} s of CPU, {quiet:.2f} s on a quiet core")
    assert quiet < START_CPU_SECONDS

    harness = OperatorHarness(api, namespace, scripted_nodes, secrets.token_hex(3))
    await harness.add_nodes({}, {})
    scripted_nodes.default = PodScript(exit_after=0.5)
    await harness.submit("job")
    await harness.phase("job", "Succeeded", seconds=60)
    await harness.clear()

    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(60) == 0, container.log.read_text()
    log = container.log.read_text()
    assert "Traceback" not in log and "Read-only" not in log, log
