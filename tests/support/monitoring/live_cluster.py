"""A cluster of process nodes with operator, jobs of real ranks, and a Prometheus that scrapes both.

The operator is a process beside the cluster, so its target is given by address. Its labels are
those of the Service, as the discovery of EndpointSlices would find them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_chart.helm import render
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.process_node.start import TOPOLOGY, machine_node, start_process_nodes
from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.scrape import scrape_config, server_config, static_scrape_config
from llmtrain_monitoring.server import PrometheusServer
from tests.support.chart.manifests import documents, find
from tests.support.monitoring.live_jobs import (
    FAILING,
    NAMESPACE,
    RUN,
    starting_jobs,
    volume,
    waiting_jobs,
)
from tests.support.operator_harness.harness import JOBS, OperatorProcess, status_of
from tests.support.operator_harness.install import install
from tests.support.trainer.nvml import build_nvml

PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
NODES = [
    machine_node(
        f"rack-{rack}-1",
        {f"{TOPOLOGY}/leaf": f"rack-{rack}", f"{TOPOLOGY}/spine": "spine-1", **PRODUCT},
        gpus=2,
    )
    for rack in "abcde"
]
"""One node in each rack: a job of two nodes crosses racks, and no rack has room for another."""
FIRST_STEPS = 20
"""Steps with two samples of the collectives and a checkpoint."""
START_SECONDS, SCRAPE_SECONDS = 180.0, 60.0
INTERVAL = "1s"


@dataclass(frozen=True, slots=True)
class LiveCluster:
    """A running job, and the server that scrapes it."""

    server: PrometheusServer
    plane: ControlPlane


@contextmanager
def live_cluster(folder: Path) -> Iterator[LiveCluster]:
    """Start everything, and wait until the job trains."""
    with ControlPlane(users={OPERATOR_USER: ()}) as plane:
        start_process_nodes(plane, NODES)
        asyncio.run(install(plane))
        operator = OperatorProcess(plane, folder)
        operator.start()
        try:
            data = plane.folder / "data"
            build_nvml(data / "driver")
            with PrometheusServer(folder / "prometheus", _config(plane, operator)) as server:
                _await_scrape(server)
                asyncio.run(_submit(plane, data))
                asyncio.run(_training(plane))
                yield LiveCluster(server, plane)
        finally:
            operator.stop()


def _await_scrape(server: PrometheusServer) -> None:
    """Wait until the operator is scraped, so that counters are seen before they grow."""
    deadline = time.monotonic() + SCRAPE_SECONDS
    while not server.query("llmtrain_operator_leader == 1"):
        assert time.monotonic() < deadline, server.ask("targets")
        time.sleep(0.2)


async def _submit(plane: ControlPlane, data: Path) -> None:
    data.chmod(0o777)
    async with plane.client("admin") as api:
        await api.create("namespaces", {"metadata": {"name": NAMESPACE}})
        await api.wait_for("serviceaccounts", "default", lambda found: found is not None, NAMESPACE)
        persistent, claim = volume(str(data))
        await api.create("persistentvolumes", persistent)
        await api.create("persistentvolumeclaims", claim, NAMESPACE)
        for job in starting_jobs():
            await api.create(JOBS, job, NAMESPACE)
        # A job that waits may reserve the node that the failing one needs.
        await api.wait_for(JOBS, FAILING, _failed, NAMESPACE, seconds=START_SECONDS)
        for job in waiting_jobs():
            await api.create(JOBS, job, NAMESPACE)


def _failed(job: dict[str, Any] | None) -> bool:
    return bool(status_of(job).get("phase") == "Failed")


async def _training(plane: ControlPlane) -> None:
    def trained(job: dict[str, Any] | None) -> bool:
        progress = status_of(job).get("progress") or {}
        return bool(progress.get("step", 0) >= FIRST_STEPS)

    async with plane.client("admin") as api:
        await api.wait_for(JOBS, RUN, trained, NAMESPACE, seconds=START_SECONDS)


def _config(plane: ControlPlane, operator: OperatorProcess) -> dict[str, Any]:
    enabled = {"enabled": True}
    chart = documents(render({"podMonitor": enabled, "serviceMonitor": enabled}))
    discovery = {"kubeconfig_file": str(plane.kubeconfig("admin"))}
    addresses = {"llmtrain-operator-0": f"127.0.0.1:{operator.metrics_port}"}
    scrapes = [
        scrape_config(find(chart, "PodMonitor"), discovery),
        static_scrape_config(find(chart, "ServiceMonitor"), find(chart, "Service"), addresses),
    ]
    rules = sorted(str(path) for path in (FILES / "rules").glob("*.yaml"))
    return server_config(scrapes, rules, INTERVAL)
