"""A control plane for releases of the chart: their definitions would disturb other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes
from tests.support.chart.namespaces import create_namespace
from tests.support.chart.released_operator import RELEASE_USERS, ReleasedOperators
from tests.support.chart.releases import Releases
from tests.support.operator_harness.harness import SYSTEM


@pytest.fixture(scope="module")
def release_cluster() -> Iterator[ControlPlane]:
    with ControlPlane(Options(audit=True), users=RELEASE_USERS) as cluster:
        yield cluster


@pytest.fixture
async def release_api(release_cluster: ControlPlane) -> AsyncIterator[Api]:
    release_cluster.check()
    async with release_cluster.client("admin") as client:
        yield client


@pytest.fixture
async def release_nodes(release_api: Api) -> AsyncIterator[ScriptedNodes]:
    """Two nodes on which every pod runs until it is deleted."""
    async with ScriptedNodes(release_api, PodScript(exit_after=None)) as nodes:
        labels = {"kubernetes.io/os": "linux", "harness": "chart"}
        await nodes.add(*(NodeSpec(f"node-{index}", labels, gpus=2) for index in range(2)))
        yield nodes


@pytest.fixture
async def releases(
    release_cluster: ControlPlane, release_api: Api, tmp_path: Path
) -> AsyncIterator[Releases]:
    """Helm in the namespace of the service accounts; nothing of it stays after the test."""
    await create_namespace(release_api, SYSTEM)
    found = Releases(release_api, release_cluster.kubeconfig(), SYSTEM, tmp_path)
    yield found
    await found.clear()


@pytest.fixture
def operators(
    release_cluster: ControlPlane, releases: Releases, tmp_path: Path
) -> Iterator[ReleasedOperators]:
    """Operators of the release, which are stopped at the end."""
    found = ReleasedOperators(release_cluster, releases, tmp_path)
    yield found
    found.stop()


@pytest.fixture
async def team(release_api: Api) -> str:
    """A namespace of users. It stays, because its deletion would take longer than a test."""
    await create_namespace(release_api, "team")
    return "team"
