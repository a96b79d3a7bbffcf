"""A real operator process against a real API server, with the token of the shipped role only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from tests.support.operator_harness import fixtures
from tests.support.operator_harness.harness import OperatorHarness

installed = fixtures.installed
operator_flags = fixtures.operator_flags
operator = fixtures.operator


@pytest.fixture
async def harness(
    installed: ControlPlane, api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> AsyncIterator[OperatorHarness]:
    """A namespace with nodes of its own; its jobs are gone before the nodes are."""
    found = OperatorHarness(api, namespace, scripted_nodes, secrets.token_hex(3))
    yield found
    await found.clear()
