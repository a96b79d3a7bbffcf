"""A control plane with a real Kueue, and an operator that uses it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.kueue.process import Kueue
from tests.support.kueue.queues import Queues
from tests.support.operator_harness import fixtures
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.install import installed_in

operator = fixtures.operator


@pytest.fixture(scope="package")
def kueue() -> Iterator[Kueue]:
    """Kueue in a control plane of its own."""
    with ControlPlane(Options(audit=True), users=USERS) as cluster:
        found = Kueue(cluster)
        found.install()
        yield found


@pytest.fixture(scope="package")
def installed(kueue: Kueue) -> Iterator[ControlPlane]:
    """The control plane with Kueue and llmtrain installed."""
    with installed_in(kueue.cluster, {"config": {"kueue": True}}):
        yield kueue.cluster


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    return ("--kueue=yes",)


@pytest.fixture
async def queues(installed: ControlPlane, operator: OperatorProcess) -> AsyncIterator[Queues]:
    """A namespace with four nodes of two GPUs, on which pods run until they are ended.

    As on a real node, the containers of a deleted pod do not end at once.
    """
    installed.check()
    async with (
        installed.client("admin") as api,
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
