"""A control plane with a real Kueue, and an operator that uses it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.kueue.process import Kueue
from tests.support.kueue.queues import Queues
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.install import installed_in


@pytest.fixture(scope="package")
def kueue_cluster() -> Iterator[ControlPlane]:
    values = {"config": {"kueue": True}}
    with (
        ControlPlane(Options(audit=True), users=USERS) as cluster,
        installed_in(cluster, values),
    ):
        yield cluster


@pytest.fixture(scope="package")
def kueue(kueue_cluster: ControlPlane) -> Kueue:
    found = Kueue(kueue_cluster)
    found.install()
    return found


@pytest.fixture(scope="package")
def kueue_operator(
    kueue: Kueue, kueue_cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    process = OperatorProcess(kueue_cluster, tmp_path_factory.mktemp("operator"), "--kueue=yes")
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def queues(
    kueue_cluster: ControlPlane, kueue_operator: OperatorProcess
) -> AsyncIterator[Queues]:
    """A namespace with four nodes of two GPUs, on which pods run until they are ended.

    As on a real node, the containers of a deleted pod do not end at once.
    """
    kueue_cluster.check()
    async with (
        kueue_cluster.client("admin") as api,
        ScriptedNodes(api, PodScript(exit_after=None, delete_after=0.5)) as nodes,
    ):
        namespace = f"test-{secrets.token_hex(4)}"
        await api.create("namespaces", {"metadata": {"name": namespace}})
        await api.wait_for("serviceaccounts", "default", lambda o: o is not None, namespace)
        harness = OperatorHarness(api, namespace, nodes, secrets.token_hex(3))
        await harness.add_nodes({}, {}, {}, {})
        found = Queues(harness)
        yield found
        await harness.clear()
        await found.remove()
