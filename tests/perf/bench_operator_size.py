"""Memory and CPU of the operator by the size of the cluster: the figures of docs/production.md.

A real operator with the default flags manages jobs on scripted nodes through a real API server.
Nodes are as large as real ones, with fifty images each. Every job reports its progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_core.api import env
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes, in_batches
from tests.support.operator_harness.harness import JOBS, OperatorHarness, OperatorProcess, status_of
from tests.support.operator_harness.install import install

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

FLAGS = (
    # Defaults that the harness shortens.
    "--progress-seconds=5",
    "--node-lost-seconds=30",
    "--retry-period=2",
    # The machine is busy with the cluster itself.
    "--lease-duration=90",
    "--renew-deadline=80",
)
STEADY_SECONDS = 60
PER_LEAF, PER_SPINE, GPUS = 16, 256, 8
TOPOLOGY = "network.topology.nvidia.com"
IMAGES = [
    {
        "names": [f"registry.example.com/team/image-{i}@sha256:{i:064x}", f"team/image-{i}:{i}"],
        "sizeBytes": 10**9,
    }
    for i in range(50)
]


@dataclass(frozen=True, slots=True)
class Size:
    """A cluster and its jobs."""

    nodes: int
    jobs: int
    nodes_per_job: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the operator has used since it started."""

    cpu: float
    memory: float
    at: float

    @classmethod
    def of(cls, operator: OperatorProcess) -> Usage:
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(operator.metrics())
            for sample in family.samples
            if sample.name.startswith("process_")
        }
        cpu, memory = found["process_cpu_seconds_total"], found["process_resident_memory_bytes"]
        return cls(cpu, memory / 2**20, time.monotonic())


@pytest.fixture
def own_cluster() -> Iterator[ControlPlane]:
    """A separate control plane, because thousands of nodes stay in it."""
    with ControlPlane(users=USERS) as cluster:
        asyncio.run(install(cluster))
        yield cluster


SIZES = [Size(100, 50, 2), Size(1_000, 250, 4), Size(5_000, 250, 10), Size(10_000, 1, 10_000)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.nodes}_nodes")
async def test_size(own_cluster: ControlPlane, size: Size, tmp_path: Path) -> None:
    operator = OperatorProcess(own_cluster, tmp_path, *FLAGS)
    async with own_cluster.client("admin") as api:
        nodes = ScriptedNodes(api, PodScript(exit_after=None))
        nodes.start()
        try:
            await _add_nodes(nodes, api, size.nodes)
            await asyncio.to_thread(operator.start, 300)
            empty = Usage.of(operator)
            harness = await _harness(api, nodes)
            await _run_jobs(harness, size, operator)
            running = Usage.of(operator)
            async with _progress(await harness.pods()):
                await asyncio.sleep(10)
                before = Usage.of(operator)
                await asyncio.sleep(STEADY_SECONDS)
                steady = Usage.of(operator)
                operator.kill()
                await asyncio.to_thread(operator.start, 300)
                again = Usage.of(operator)
        finally:
            operator.kill()
            await nodes.stop()
    took = running.at - empty.at
    share = (steady.cpu - before.cpu) / (steady.at - before.at)
    print(
        f"\n{size.nodes} nodes, {size.jobs} jobs of {size.nodes_per_job}"
        f"\n  without jobs: {empty.memory:.0f} MiB, {empty.cpu:.1f} s of CPU to start"
        f"\n  start of all jobs: {running.cpu - empty.cpu:.1f} s of CPU in {took:.0f} s"
        f"\n  all jobs run: {steady.memory:.0f} MiB, {share * 1000:.0f}m of a core"
        f"\n  restart: {again.memory:.0f} MiB, {again.cpu:.1f} s of CPU"
    )


async def _add_nodes(nodes: ScriptedNodes, api: Api, count: int) -> None:
    specs = [
        NodeSpec(
            f"gpu-{i}",
            {
                "harness": "size",
                f"{TOPOLOGY}/leaf": f"leaf-{i // PER_LEAF}",
                f"{TOPOLOGY}/spine": f"spine-{i // PER_SPINE}",
            },
            gpus=GPUS,
        )
        for i in range(count)
    ]
    await nodes.add(*specs)

    async def add_images(name: str) -> None:
        await api.patch("nodes", name, {"status": {"images": IMAGES}}, subresource="status")

    await in_batches(add_images(spec.name) for spec in specs)


async def _harness(api: Api, nodes: ScriptedNodes) -> OperatorHarness:
    await api.create("namespaces", {"metadata": {"name": "size"}})
    await api.wait_for("serviceaccounts", "default", lambda found: found is not None, "size")
    return OperatorHarness(api, "size", nodes, "size")


async def _run_jobs(harness: OperatorHarness, size: Size, operator: OperatorProcess) -> None:
    """Submit all jobs and wait until all run."""
    data = size.nodes_per_job * GPUS // 2
    for index in range(size.jobs):
        await harness.submit(
            f"job-{index}",
            workers={"nodes": size.nodes_per_job, "gpusPerNode": GPUS},
            parallelism={"tensor": 2, "data": data},
            training={"steps": 100_000, "globalBatchSize": data, "microBatchSize": 1},
        )
    while True:
        jobs = await harness.api.list(JOBS, harness.namespace)
        running = sum(status_of(job).get("phase") == "Running" for job in jobs)
        if running == size.jobs:
            return
        assert operator.alive(), operator.tail()
        print(f"{running} of {size.jobs} jobs run", flush=True)
        await asyncio.sleep(10)


@contextlib.asynccontextmanager
async def _progress(pods: list[dict[str, object]]) -> AsyncIterator[None]:
    """Report a step that grows, from rank 0 of every job."""

    async def status(_request: web.Request) -> web.Response:
        step = int(time.monotonic())
        progress = {"phase": "training", "step": step, "totalSteps": 10**9, "stepSeconds": 1.0}
        return web.json_response(progress)

    app = web.Application()
    app.router.add_get("/status", status)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for pod in pods:
            if pod["metadata"]["labels"]["llmtrain.dev/node-index"] == "0":  # type: ignore[index]
                address = pod["status"]["podIP"]  # type: ignore[index]
                await web.TCPSite(runner, address, env.HTTP_PORT).start()
        yield
    finally:
        await runner.cleanup()
