"""A real operator process against a real API server, with the token of the shipped role only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.install import installed_in


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, but for the operator itself."""
    with installed_in(control_plane):
        yield control_plane


@pytest.fixture(scope="module")
def operator(
    installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator process that the tests of a module share."""
    process = OperatorProcess(installed, tmp_path_factory.mktemp("operator"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def harness(
    installed: ControlPlane, api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> AsyncIterator[OperatorHarness]:
    """A namespace with nodes of its own; its jobs are gone before the nodes are."""
    found = OperatorHarness(api, namespace, scripted_nodes, secrets.token_hex(3))
    yield found
    await found.clear()
