"""The objects of device claims are created before the pods, and what the cluster lacks is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from llmtrain_core.queueing import Unschedulable
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ConfigError, api_error
from llmtrain_operator.kube.api import Item, ListPage, Object
from llmtrain_operator.kube.informer import Informer, Selection
from llmtrain_operator.kube.resources import (
    CLAIM_TEMPLATES,
    COMPUTE_DOMAINS,
    POD_GROUPS,
    PODS,
    RESOURCE_SLICES,
    Resource,
)
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile.reconciler import Reconciler
from tests.support.devices.objects import (
    CHANNELS,
    CLASSES,
    channel,
    claim_of_gang,
    claims_of_workers,
    gpus,
)
from tests.support.operator_harness.job_world import OWNER, JobWorld, moment
from tests.support.operator_harness.observed import PLACEMENT, status
from tests.support.operator_harness.scheduling import record
from tests.support.operator_harness.store import Store, until

pytestmark = pytest.mark.unit

FLAGS = ("--device-claims=yes", "--compute-domains=yes", "--pod-groups=yes")
GPU = "deviceclass.resource.kubernetes.io/gpu.example.com"


@pytest.fixture
async def controller(store: Store) -> AsyncIterator[Controller]:
    found = Controller(parse(FLAGS), store, Metrics(), lambda _name: None)
    yield found
    await found.stop()


def two_gpus(node: str) -> Object:
    return gpus(node, 2)


def world(
    controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> JobWorld:
    """Return a job with claims and a ComputeDomain that has got two nodes of the driver."""
    placed = status(**{"attemptStartTime": moment(), "startTime": moment(), **changes})
    if placed.get("placement"):
        placed["placement"] = {**PLACEMENT, "resources": {GPU: 2}, **placed["placement"]}
    found = JobWorld(controller, store, monkeypatch, placed)
    found.job["spec"]["workers"]["deviceClaims"] = claims_of_workers()
    found.job["spec"]["topology"] = {"computeDomain": "auto"}
    found.show()
    found.put_nodes("n0", "n1")
    devices = controller.informers.device_informers
    assert devices is not None
    published = (each(name) for name in ("n0", "n1") for each in (two_gpus, channel))
    for number, raw in enumerate((*published, *CLASSES, CHANNELS), 1):
        kind = devices.slices if raw["kind"] == "ResourceSlice" else devices.classes
        name = raw["metadata"]["name"]
        metadata = {**raw["metadata"], "uid": name, "resourceVersion": str(number)}
        kind._upsert(Item({**raw, "metadata": metadata}))
    return found


async def test_templates_and_the_compute_domain_come_before_the_pods(
    controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world(controller, store, monkeypatch)
    await found.reconcile(6)
    assert found.pods == {"job-0-0", "job-0-1"}, found.status
    first_pod = found.created.index((PODS.plural, "job-0-0"))
    assert found.created.index((CLAIM_TEMPLATES.plural, "job.devices")) < first_pod
    assert found.created.index((COMPUTE_DOMAINS.plural, "job-0")) < first_pod


async def test_the_compute_domain_of_an_attempt_that_is_over_is_deleted(
    controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world(controller, store, monkeypatch)
    tags = {"llmtrain.dev/job-uid": "uid", "llmtrain.dev/attempt": "0"}
    names = {"name": "job-0", "namespace": "ns", "uid": "cd", "resourceVersion": "5"}
    metadata = {**names, "labels": tags, "ownerReferences": [OWNER]}
    controller.informers.attempt_objects[COMPUTE_DOMAINS]._upsert(Item({"metadata": metadata}))
    await found.reconcile(2)
    assert (COMPUTE_DOMAINS.plural, "job-0") not in found.deleted, "the attempt goes on"
    found.job["spec"]["suspend"] = True
    found.job["metadata"]["generation"] = 2
    found.show()
    found.refused.add(("delete", COMPUTE_DOMAINS.plural))
    await found.reconcile(4)
    assert (COMPUTE_DOMAINS.plural, "job-0") not in found.deleted
    found.refused.clear()
    found.reconciler.attempt_objects.backoff.reset()
    await found.reconcile(2)
    assert (COMPUTE_DOMAINS.plural, "job-0") in found.deleted


@pytest.mark.parametrize(
    ("resource", "field", "text"),
    [
        (COMPUTE_DOMAINS, "spec.topology.computeDomain", "install the DRA driver of NVIDIA"),
        (CLAIM_TEMPLATES, "spec.workers.deviceClaims", "does not serve resource.k8s.io/v1"),
    ],
)
async def test_a_cluster_without_the_kind_is_told_before_nodes_are_held(
    resource: Resource,
    field: str,
    text: str,
    controller: Controller,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world(controller, store, monkeypatch)

    async def create(kind: Resource, body: Object, *_: Any, **options: Any) -> Object:
        assert options["dry_run"]
        if kind == resource:
            raise api_error(404, "NotFound", "the server could not find the requested resource")
        return body

    monkeypatch.setattr(store, "create", create)
    refusal = await controller._try_pod("uid")
    assert isinstance(refusal, Unschedulable) and refusal.reason == "NotServed"
    assert refusal.message.startswith(f"{field}: ") and text in refusal.message


@pytest.mark.parametrize("served", [True, False])
async def test_a_cluster_without_claims_of_pod_groups_is_told_before_nodes_are_held(
    served: bool, controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world(controller, store, monkeypatch)
    found.job["spec"]["workers"]["deviceClaims"].append(claim_of_gang())
    found.show()

    async def create(kind: Resource, body: Object, *_: Any, **options: Any) -> Object:
        assert options["dry_run"]
        if kind != POD_GROUPS:
            return body
        if not served:
            raise api_error(404, "NotFound", "the server could not find the requested resource")
        kept = {key: value for key, value in body["spec"].items() if key != "resourceClaims"}
        return {**body, "spec": kept}

    monkeypatch.setattr(store, "create", create)
    refusal = await controller._try_pod("uid")
    assert isinstance(refusal, Unschedulable) and refusal.reason == "NotServed"
    why = "drops the claims of PodGroups" if served else "does not serve PodGroups"
    assert refusal.message.startswith("spec.workers.deviceClaims: scope gang: the API server ")
    assert why in refusal.message and "DRAWorkloadResourceClaims" in refusal.message


def test_claims_of_the_gang_need_pod_groups() -> None:
    claims = [*claims_of_workers(), claim_of_gang()]
    found = record("job", workers={"deviceClaims": claims})
    [problem] = cast(list[Problem], CheckedJobs(device_claims=True).get(found))
    assert (problem.reason, problem.field) == ("Forbidden", "spec.workers.deviceClaims[1].scope")
    assert "--pod-groups" in str(problem) and "config.podGroups" in str(problem)
    assert isinstance(CheckedJobs(device_claims=True, pod_groups=True).get(found), Job)


async def test_an_optional_copy_is_empty_while_the_server_does_not_have_the_resource(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain_operator.kube.informer.MISSING_SECONDS", 0.01)
    answer: list[Any] = [api_error(404, "NotFound", "no such resource")]
    listed = 0

    async def list_page(*_: Any, **__: Any) -> ListPage:
        nonlocal listed
        listed += 1
        if isinstance(answer[0], Exception):
            raise answer[0]
        return ListPage([Item(answer[0])], 7, "")

    monkeypatch.setattr(store, "list_page", list_page)
    informer = Informer[str](
        "slices",
        store,
        Selection(RESOURCE_SLICES),
        lambda raw: str(raw["metadata"]["name"]),
        optional=True,
    )
    task = asyncio.create_task(informer.run())
    await informer.synced.wait()
    assert "no such resource" in informer.missing and len(informer) == 0
    answer[0] = {"metadata": {"name": "one", "uid": "1", "resourceVersion": "5"}}
    await until(lambda: not informer.missing)
    assert [*informer.values()] == ["one"]
    answer[0] = api_error(403, "Forbidden", "not any more")
    informer.relist()
    await until(lambda: "not any more" in informer.missing)
    assert len(informer) == 0
    task.cancel()


def test_compute_domains_need_device_claims() -> None:
    with pytest.raises(ConfigError, match="--compute-domains: --device-claims is required"):
        parse(["--compute-domains=yes"])


def test_the_reconciler_is_made_with_what_it_needs(controller: Controller) -> None:
    informers = Reconciler("uid", controller._deps).attempt_objects.informers
    assert [found.name for found in informers.values()] == ["compute-domains", "pod-groups"]
