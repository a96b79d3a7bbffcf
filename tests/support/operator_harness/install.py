"""Install llmtrain in a control plane, all but the operator's process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmtrain_chart.helm import render
from llmtrain_core.api.crd import crds
from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from tests.support.chart.manifests import documents
from tests.support.operator_harness.harness import SYSTEM
from tests.support.paths import ROOT
from tests.support.rights.audit import refused

DEPLOY = ROOT / "deploy" / "llmtrain.yaml"


async def install(control_plane: ControlPlane, values: Mapping[str, Any] | None = None) -> None:
    """Install the CRDs and the shipped roles, and bind them to the operator's user.

    With values of the chart, the roles are those that the chart renders with them.
    """
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
        text = render(values, "--no-hooks") if values else DEPLOY.read_text("utf-8")
        for document in documents(text):
            if not document["kind"].endswith(("Role", "RoleBinding")):
                continue
            if document["kind"].endswith("Binding"):
                document["subjects"] = [user]
            await api.apply(document, document["metadata"].get("namespace"))
        # The garbage collector learns of new kinds only now and then; see that it knows ours.
        await _wait_served(api)


@contextmanager
def installed_in(
    control_plane: ControlPlane, values: Mapping[str, Any] | None = None
) -> Iterator[ControlPlane]:
    """Install llmtrain. At the end, no request of its operators must have been refused."""
    asyncio.run(install(control_plane, values))
    yield control_plane
    assert refused(control_plane.requests(OPERATOR_USER)) == []


async def _wait_served(api: Api) -> None:
    for _ in range(100):
        try:
            await api.list("llmtrain.dev/v1alpha1/llmtrainingjobs")
            await api.list("llmtrain.dev/v1alpha1/fabrics")
            return
        except ApiStatusError:
            await asyncio.sleep(0.1)
