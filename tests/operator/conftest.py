"""A real operator process against a real API server, with the token of the shipped role only."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from llmtrain_core.api.crd import crds
from llmtrain_devcluster.api import Api, ApiError
from llmtrain_devcluster.controlplane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.scripted import ScriptedNodes

# A package here would be named `operator`, as the standard library's module is.
sys.path.insert(0, str(Path(__file__).parent))
from operator_bench import SYSTEM, Bench, OperatorProcess

RBAC = Path(__file__).parents[2] / "deploy" / "rbac.yaml"


async def install(control_plane: ControlPlane) -> None:
    """Install the CRDs and the shipped roles, and bind them to the operator's user."""
    async with control_plane.client("admin") as api:
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        for crd in crds():
            await api.apply(crd)
            await api.wait_for(
                "apiextensions.k8s.io/v1/customresourcedefinitions",
                crd["metadata"]["name"],
                lambda found: any(
                    c["type"] == "Established" and c["status"] == "True"
                    for c in (found or {}).get("status", {}).get("conditions") or ()
                ),
            )
        user = {"kind": "User", "name": OPERATOR_USER, "apiGroup": "rbac.authorization.k8s.io"}
        for document in yaml.safe_load_all(RBAC.read_text()):
            if document["kind"].endswith("Binding"):
                document["subjects"] = [user]
            await api.apply(document, document["metadata"].get("namespace"))
        # The garbage collector learns of new kinds only now and then; see that it knows ours.
        await _wait_served(api)


async def _wait_served(api: Api) -> None:
    for _ in range(100):
        try:
            await api.list("llmtrain.dev/v1alpha1/llmtrainingjobs")
            await api.list("llmtrain.dev/v1alpha1/fabrics")
            return
        except ApiError:
            await asyncio.sleep(0.1)


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with llmtrain installed, but for the operator itself."""
    asyncio.run(install(control_plane))
    return control_plane


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
async def bench(
    installed: ControlPlane, api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> AsyncIterator[Bench]:
    """A namespace with nodes of its own; its jobs are gone before the nodes are."""
    found = Bench(api, namespace, scripted_nodes, secrets.token_hex(3))
    yield found
    await found.clear()
