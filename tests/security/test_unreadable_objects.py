"""An unreadable object affects no other object: a job, a pod, an annotation, a whole resource."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmtrain_core.api.crd import crds
from llmtrain_devcluster.api import Api, ApiStatusError
from tests.support.operator_harness.harness import JOBS, OperatorProcess, condition, job_object
from tests.support.security import hostile
from tests.support.security.measure import Bystanders, StartTimes
from tests.support.security.tenants import Tenant, Tenants

pytestmark = pytest.mark.cluster

API_VERSION = "llmtrain.dev/v1alpha1"
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
NODES, FABRICS = "nodes", "llmtrain.dev/v1alpha1/fabrics"
PRIORITY_CLASSES = "scheduling.k8s.io/v1/priorityclasses"
BROKEN_ANNOTATIONS = {
    f"llmtrain.dev/{name}": "{"
    for name in ("last-handled-configuration", "kopf-managed", "touch-dummy", "reconcile")
}


def pod(name: str, labels: dict[str, str], node: str = "") -> dict[str, Any]:
    """Return a pod that no scripted node runs."""
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "containers": [{"name": "main", "image": "example.com/x:1"}],
            "nodeSelector": {"no": "node"},
            **({"nodeName": node} if node else {}),
        },
    }


async def make_managed_fields_deep(
    api: Api, resource: str, name: str, version: str, namespace: str | None = None
) -> None:
    data = hostile.deep_managed_fields(version)
    await hostile.patch(api, resource, name, data, namespace)
    path = hostile.resource_path(resource, namespace, name)
    stored = await api.send("GET", path)
    assert stored.count(b'"f:a":{') >= hostile.LEVELS, "the API server has not stored the attack"


async def test_managed_fields_of_a_job_are_nested_deeply(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await mallory.submit("before", suspend=True)
    await mallory.submit("running")
    await mallory.phase("running", "Running")
    for name in ("before", "running"):
        await make_managed_fields_deep(mallory.api, JOBS, name, API_VERSION, mallory.namespace)
    await bystanders.are_unharmed("managed fields of a job nested 1,200 levels")

    # The operator does not use managed fields, so the job itself continues, too.
    resume = b'{"spec":{"suspend":false}}'
    await hostile.patch(mallory.api, JOBS, "before", resume, mallory.namespace)
    await mallory.job_is("before", lambda job: job["status"]["phase"] == "Running")
    for name in ("before", "running"):
        await delete(mallory, name)


async def delete(tenant: Tenant, name: str) -> None:
    """Delete a hostile job and wait until it is gone."""
    await tenant.api.send("DELETE", hostile.resource_path(JOBS, tenant.namespace, name))
    async with asyncio.timeout(60):
        while name in await hostile.names(tenant.api, JOBS, tenant.namespace):
            await asyncio.sleep(0.1)


async def test_objects_are_unreadable_when_the_operator_starts(
    operator: OperatorProcess, tenants: Tenants, starts: StartTimes
) -> None:
    await starts.measure_usual(tenants.bob)
    mallory, admin = tenants.mallory, tenants.admin
    await mallory.submit("job", suspend=True)
    await make_managed_fields_deep(mallory.api, JOBS, "job", API_VERSION, mallory.namespace)
    pods = {
        "labelled": pod("labelled", {"llmtrain.dev/job-uid": "x"}),
        "bound": pod("bound", {}, node="nowhere"),
    }
    for name, body in pods.items():
        await mallory.api.create("pods", body, mallory.namespace)
        await make_managed_fields_deep(mallory.api, "pods", name, "v1", mallory.namespace)
    await bystanders_of(tenants, operator, starts).are_unharmed("pods with deep managed fields")

    # Administrators' objects, too: they are written by other programs.
    fabric = {
        "apiVersion": API_VERSION,
        "kind": "Fabric",
        "metadata": {"name": "other"},
        "spec": {"levels": LEVELS},
    }
    await admin.apply(fabric)
    priority = {"metadata": {"name": "deep"}, "value": 1}
    await admin.create(PRIORITY_CLASSES, priority)
    node = {"metadata": {"name": "deep-node"}}
    await admin.create(NODES, node)
    cluster_wide = {
        (FABRICS, "other"): API_VERSION,
        (PRIORITY_CLASSES, "deep"): "scheduling.k8s.io/v1",
        (NODES, "deep-node"): "v1",
    }
    try:
        for (resource, name), version in cluster_wide.items():
            await make_managed_fields_deep(admin, resource, name, version)
        await asyncio.to_thread(operator.stop)
        await asyncio.to_thread(operator.start)
        after = bystanders_of(tenants, operator, starts)
        await after.are_unharmed("a start while objects of all kinds are nested 1,200 levels")
    finally:
        for resource, name in cluster_wide:
            await admin.send("DELETE", hostile.resource_path(resource, None, name))


LEVELS = [{"name": "node", "nodeLabel": "kubernetes.io/hostname"}]


def bystanders_of(tenants: Tenants, operator: OperatorProcess, starts: StartTimes) -> Bystanders:
    return Bystanders(tenants.bob, operator, starts)


async def test_a_pod_patch_is_nested_deeply(tenants: Tenants, bystanders: Bystanders) -> None:
    """Every level of the field has a type: the API server drops what is nested in it."""
    mallory = tenants.mallory
    body = job_object("deep", mallory.namespace, workers={"nodeSelector": {"no": "node"}})
    data = hostile.with_nested(body, "spec", "workers", "podPatch", "spec", "dnsConfig")
    await hostile.create(mallory.api, JOBS, data, mallory.namespace)
    job = await mallory.job_is("deep", lambda job: condition(job, "Accepted") != {})
    assert job["spec"]["workers"]["podPatch"] == {"spec": {"dnsConfig": {}}}
    await bystanders.are_unharmed("a pod patch nested 1,200 levels")


@pytest.fixture
async def old_definition(tenants: Tenants) -> AsyncIterator[None]:
    """Serve the definition of jobs of an earlier version, which Helm does not upgrade by itself."""
    jobs = next(crd for crd in crds() if crd["spec"]["names"]["plural"] == "llmtrainingjobs")
    name = jobs["metadata"]["name"]
    old = json.loads(json.dumps(jobs))
    schema = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    workers = schema["properties"]["spec"]["properties"]["workers"]["properties"]
    workers["podPatch"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    await tenants.admin.apply(old)
    for _ in range(600):
        data = hostile.with_nested(
            job_object("probe", tenants.carol.namespace), "spec", "workers", "podPatch", levels=2
        )
        path = hostile.resource_path(JOBS, tenants.carol.namespace) + "?dryRun=All"
        if b"podPatch" in await tenants.carol.api.send("POST", path, data):
            break
        await asyncio.sleep(0.1)
    else:
        raise TimeoutError(f"{name} does not keep the field")
    await until_served(tenants)
    yield
    await tenants.admin.apply(jobs)
    await until_served(tenants)


async def until_served(tenants: Tenants) -> None:
    """Wait until the API server serves jobs again: a new definition opens their storage again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await asyncio.sleep(0.5)
                await hostile.names(tenants.admin, JOBS, tenants.bob.namespace)
                return
            except ApiStatusError as error:
                assert error.status == 429, error


@pytest.mark.usefixtures("old_definition")
async def test_a_spec_is_unreadable_with_an_old_definition(
    operator: OperatorProcess, tenants: Tenants, starts: StartTimes
) -> None:
    await starts.measure_usual(tenants.bob)
    # A watch that began before the change of the definition drops the field.
    await asyncio.to_thread(operator.stop)
    await asyncio.to_thread(operator.start)
    mallory = tenants.mallory
    for name, levels in (("deep", hostile.LEVELS), ("less-deep", 200)):
        body = job_object(name, mallory.namespace)
        data = hostile.with_nested(body, "spec", "workers", "podPatch", levels=levels)
        await hostile.create(mallory.api, JOBS, data, mallory.namespace)
        job = await mallory.job_is(name, lambda job: condition(job, "Accepted") != {})
        accepted = condition(job, "Accepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "Unreadable")
        assert job["status"]["phase"] == "Rejected"
    await operator.shows('llmtrain_operator_unreadable_objects{informer="jobs"} 1.0', 60)
    uid = (await hostile.read(mallory.api, JOBS, "deep", mallory.namespace))["metadata"]["uid"]
    await operator.logs(f"uid={uid} cannot be read")
    await bystanders_of(tenants, operator, starts).are_unharmed("a spec nested 1,200 levels")
    for name in ("deep", "less-deep"):
        await delete(mallory, name)
    await operator.shows('llmtrain_operator_unreadable_objects{informer="jobs"} 0.0', 60)


async def test_annotations_of_the_framework_are_broken(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    body = job_object("job", mallory.namespace, workers={"nodeSelector": {"harness": mallory.tag}})
    body["metadata"]["annotations"] = BROKEN_ANNOTATIONS
    await mallory.api.create(JOBS, body, mallory.namespace)
    await mallory.phase("job", "Running")
    await bystanders.are_unharmed("broken annotations of kopf")
    await mallory.api.delete(JOBS, "job", mallory.namespace)
    await mallory.gone("job")
