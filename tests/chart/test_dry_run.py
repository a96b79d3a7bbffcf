"""A real API server accepts what the chart renders, strictly and in the restricted Pod Security."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llmtrain_core.api.crd import crds
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.chart.manifests import dry_run_all, pod_of
from tests.support.chart.monitoring_crds import MONITORING_CRDS
from tests.support.chart.rendering import rendered_set
from tests.support.chart.value_sets import NAMESPACES, VALUE_SETS

pytestmark = pytest.mark.cluster

DEFINITIONS = "apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def ready(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with all kinds and namespaces of the chart."""

    async def prepare() -> None:
        async with control_plane.client("admin") as api:
            for definition in (*crds(), *MONITORING_CRDS):
                await api.apply(definition)
            for definition in (*crds(), *MONITORING_CRDS):
                name = definition["metadata"]["name"]
                await api.wait_for(DEFINITIONS, name, is_established)
            for name in NAMESPACES:
                labels = {"pod-security.kubernetes.io/enforce": "restricted"}
                body = {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}
                await api.apply({"apiVersion": "v1", **body})
                await api.wait_for("serviceaccounts", "default", lambda o: o is not None, name)

    async def remove() -> None:
        async with control_plane.client("admin") as api:
            for name in NAMESPACES[1:]:
                await api.delete("namespaces", name)

    asyncio.run(prepare())
    yield control_plane
    asyncio.run(remove())


def is_established(definition: dict[str, object] | None) -> bool:
    status = (definition or {}).get("status") or {}
    assert isinstance(status, dict)
    return {"Established": "True"}.items() <= {
        c["type"]: c["status"] for c in status.get("conditions") or ()
    }.items()


async def test_every_object_of_every_set_is_accepted(ready: ControlPlane, api: Api) -> None:
    assert len(VALUE_SETS) >= 30
    sets = {name: rendered_set(name) for name in VALUE_SETS}
    for objects in sets.values():
        deployments = [o for o in objects if o["kind"] == "Deployment"]
        objects += [pod_of(deployment) for deployment in deployments]
    assert await dry_run_all(api, sets) == {}


async def test_a_wrong_field_is_found(ready: ControlPlane, api: Api) -> None:
    (monitor,) = (o for o in rendered_set("pod monitor") if o["kind"] == "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["scrapeInterval"] = "15s"
    complaints = await dry_run_all(api, {"wrong": [monitor]})
    assert "scrapeInterval" in complaints["wrong"][0]


async def test_a_pod_without_security_context_is_refused(ready: ControlPlane, api: Api) -> None:
    (deployment,) = (o for o in rendered_set("defaults") if o["kind"] == "Deployment")
    pod = pod_of(deployment)
    del pod["spec"]["containers"][0]["securityContext"]
    complaints = await dry_run_all(api, {"wrong": [pod]})
    assert "violates PodSecurity" in complaints["wrong"][0]
