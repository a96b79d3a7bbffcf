"""pytest fixtures: one control plane for the whole run, a namespace and clients for each test."""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import ScriptedNodes

OPERATOR_USER = "llmtrain-operator"
USERS = {OPERATOR_USER: (), "researcher": (), "unprivileged": ()}
"""`unprivileged` never gets a right; tests may bind roles to the others."""


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane for all tests of a run. It does not depend on an event loop."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def progress(line: str) -> None:
        """Show the one-time build even though pytest captures the output."""
        with capture.global_and_fixture_disabled():
            print(line, file=sys.stderr, flush=True)

    with ControlPlane(Options(audit=True), users=USERS, progress=progress) as cluster:
        yield cluster


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """A client of the API with the rights of the administrator."""
    control_plane.check()
    async with control_plane.client("admin") as client:
        yield client


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[str]:
    """A new namespace, ready for pods, deleted after the test."""
    name = f"test-{secrets.token_hex(4)}"
    await api.create("namespaces", {"metadata": {"name": name}})
    await api.wait_for("serviceaccounts", "default", lambda found: found is not None, name)
    yield name
    for pod in await api.list("pods", name):
        await api.delete("pods", pod["metadata"]["name"], name, grace_seconds=0, missing_ok=True)
    await api.delete("namespaces", name)


@pytest.fixture
async def scripted_nodes(api: Api, namespace: str) -> AsyncIterator[ScriptedNodes]:
    """Scripted nodes, initially none. They are removed before the namespace is deleted."""
    async with ScriptedNodes(api) as nodes:
        yield nodes
