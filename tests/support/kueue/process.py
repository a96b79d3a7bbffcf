"""Kueue as a local process beside a control plane.

Its webhooks are called at a URL instead of a Service, with the certificate of the API server, which
is valid for 127.0.0.1. Kueue reads the certificate of its metrics from a fixed folder even if they
are off, so it runs in a sandbox that has this folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import yaml

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.control_plane.readiness import probe
from llmtrain_devcluster.process_node.sandbox import Mount, Sandbox
from llmtrain_devcluster.processes import free_ports
from tests.support.kueue.build import DEFINITIONS, KUEUE, SERVER, WEBHOOKS

Object = dict[str, Any]

NAME = "kueue"
SYSTEM = "kueue-system"
METRICS_CERTIFICATE = "/etc/kueue/metrics/certs"
READY_SECONDS = 120.0
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
IN_SANDBOX = 'exec "$0" -m llmtrain_devcluster.process_node.sandbox $PPID < "$1"'


class Kueue:
    """Kueue of one control plane."""

    def __init__(self, cluster: ControlPlane):
        self.cluster = cluster
        self._folder = KUEUE.build(KUEUE.tools, lambda line: print(line, file=sys.stderr))
        self._webhook_port, self._health_port = free_ports(2)

    def install(self) -> None:
        """Install its API, start it, and have its webhooks called."""
        certificate = _own_files(self.cluster, self._webhook_port, self._health_port)
        address = {"url": f"https://127.0.0.1:{self._webhook_port}", "ca": certificate}
        definitions = _definitions(self._folder / DEFINITIONS.name, **address)
        asyncio.run(_install(self.cluster, definitions))
        self.start()
        asyncio.run(_install(self.cluster, _webhooks(self._folder / WEBHOOKS.name, **address)))

    def start(self) -> None:
        """Start it and wait until it is ready."""
        _start(self.cluster, self._folder / SERVER.name)
        _await_ready(self.cluster, f"http://127.0.0.1:{self._health_port}/readyz")

    def stop(self) -> None:
        """End it; its webhooks stay."""
        self.cluster.end_component(NAME)


def _own_files(cluster: ControlPlane, webhook_port: int, health_port: int) -> str:
    """Write configuration, kubeconfig and certificates; return the certificate to trust."""
    folder = cluster.folder / NAME
    (folder / "certs").mkdir(parents=True)
    for name, source in (("tls.crt", "apiserver.crt"), ("tls.key", "apiserver.key")):
        shutil.copy(cluster.folder / "tls" / source, folder / "certs" / name)
    cluster.kubeconfig("admin", folder / "kubeconfig")
    configuration = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": SYSTEM,
        "internalCertManagement": {"enable": False},
        "webhook": {"host": "127.0.0.1", "port": webhook_port, "certDir": str(folder / "certs")},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health_port}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 300, "burst": 500},
        "integrations": {"frameworks": ["pod", "batch/job"]},
        "featureGates": {"VisibilityOnDemand": False},
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    return b64encode(cluster.ca_file.read_bytes()).decode()


def _definitions(folder: Path, url: str, ca: str) -> list[Object]:
    """Return the CRDs, which have several versions, with the webhook that converts objects."""
    found = [yaml.load(path.read_text(), yaml.CSafeLoader) for path in sorted(folder.iterdir())]
    client = {"url": f"{url}/convert", "caBundle": ca}
    webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
    for definition in found:
        definition["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    return found


def _webhooks(folder: Path, url: str, ca: str) -> list[Object]:
    """Return the webhook configurations. Those of Pods skip system namespaces, as shipped."""
    found = list(yaml.load_all((folder / "manifests.yaml").read_text(), yaml.CSafeLoader))
    for configuration in found:
        configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"{url}{path}", "caBundle": ca}
            if any("pods" in rule["resources"] for rule in webhook["rules"]):
                webhook["namespaceSelector"] = {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "NotIn",
                            "values": ["kube-system", SYSTEM],
                        }
                    ]
                }
    return found


async def _install(cluster: ControlPlane, objects: list[Object]) -> None:
    async with cluster.client("admin") as api:
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        for item in objects:
            await api.apply(item)
        for item in objects:
            if item["kind"] == "CustomResourceDefinition":
                await _established(api, item["metadata"]["name"])


async def _established(api: Api, name: str) -> None:
    await api.wait_for(
        CRDS,
        name,
        lambda found: any(
            c["type"] == "Established" and c["status"] == "True"
            for c in (found or {}).get("status", {}).get("conditions") or ()
        ),
    )


def _start(cluster: ControlPlane, program: Path) -> None:
    folder, scratch = cluster.folder / NAME, cluster.folder / f"{NAME}-scratch"
    scratch.mkdir(exist_ok=True)
    sandbox = Sandbox(
        command=[str(program), f"--config={folder / 'config.json'}", "--zap-log-level=2"],
        env={"KUBECONFIG": str(folder / "kubeconfig"), "PATH": os.environ["PATH"]},
        work_dir="/",
        hostname=NAME,
        scratch=str(scratch),
        mounts=[
            Mount(str(cluster.folder), str(cluster.folder), read_only=True),
            Mount(str(folder / "certs"), METRICS_CERTIFICATE, read_only=True),
        ],
    )
    path = folder / "sandbox.json"
    path.write_text(sandbox.to_json())
    cluster.run_component(NAME, ["/bin/sh", "-c", IN_SANDBOX, sys.executable, str(path)], {})


def _await_ready(cluster: ControlPlane, url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while (answer := probe(url, "")) != "ok":
        cluster.check()
        assert time.monotonic() < deadline, f"{answer}\n{cluster.log_tail(NAME, 40)}"
        time.sleep(0.2)
