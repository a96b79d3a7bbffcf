"""pytest fixtures of the benchmarks of a trace: a control plane with nothing else in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.operator_harness.harness import OperatorHarness
from tests.support.operator_harness.install import install
from tests.support.operator_harness.queue_trace import PRIORITY_NAMES


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[ControlPlane]:
    """Yield a separate control plane. Deleting every object of a shared one would take minutes."""
    with ControlPlane(users=USERS) as cluster:
        asyncio.run(install(cluster))
        yield cluster


@pytest.fixture
async def harness(own_cluster: ControlPlane) -> AsyncIterator[OperatorHarness]:
    async with own_cluster.client("admin") as api:
        nodes, namespace = ScriptedNodes(api), "trace"
        await api.create("namespaces", {"metadata": {"name": namespace}})
        for value, name in PRIORITY_NAMES.items():
            body = {"metadata": {"name": name}, "value": value}
            await api.create("scheduling.k8s.io/v1/priorityclasses", body)
        await api.wait_for("serviceaccounts", "default", lambda found: found is not None, namespace)
        nodes.start()
        yield OperatorHarness(api, namespace, nodes, "trace")
        await nodes.stop()
