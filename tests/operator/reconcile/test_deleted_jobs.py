"""What the operator does when a job is gone: nothing but to follow its last pods for a while."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_core.queueing import PendingJob, Unschedulable
from llmtrain_operator.controller import CONCURRENT_DECISIONS, Controller
from llmtrain_operator.errors import (
    ApiError,
    ForbiddenError,
    LeaseLostError,
    UnavailableError,
)
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import Item, Object
from llmtrain_operator.kube.resources import (
    CONFIG_MAPS,
    DISRUPTION_BUDGETS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Resource,
)
from llmtrain_operator.manifests.disruption_budget import make_disruption_budget
from llmtrain_operator.manifests.job_resources import job_resources, make_service
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.policies import deletion
from llmtrain_operator.reconcile import reconciler as module
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.writer import _CreateRefusedError
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.job_world import JobWorld
from tests.support.operator_harness.observed import make_observed, status
from tests.support.operator_harness.store import Store, log_has, put_job, put_pod, until

pytestmark = pytest.mark.unit


async def test_the_loop_of_a_job_ends_after_its_last_pod(
    controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    controller.reconcile("absent")
    assert len(controller._loops) == 0
    put_job(controller, "a")
    put_pod(controller, "a", 1)
    controller.reconcile("a")
    assert len(controller._loops) == 1
    controller.informers.jobs._remove("a")
    await until(lambda: log_has(caplog, "job=a is gone, 1 pods have not ended yet"))
    assert len(controller._loops) == 1
    put_pod(controller, "a", 2, "Succeeded")
    await until(lambda: len(controller._loops) == 0)
    assert not controller._assessments._known and not controller._poller._polled_at
    assert not controller.metrics.gpu_seconds._jobs
    assert not controller._checked._checked


async def test_pods_that_do_not_end_are_named_in_the_log(
    store: Store,
    controller: Controller,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion, "TERMINATION_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(deletion, "PATIENCE_SECONDS", 0.05)
    put_job(controller, "a")
    put_pod(controller, "a", 1)
    controller.reconcile("a")
    controller.informers.jobs._remove("a")
    await until(lambda: len(controller._loops) == 0)
    assert log_has(caplog, "job=a is gone, but its pods have not ended and hold their nodes")
    assert log_has(caplog, "ns/job-0-0")
    [event] = [body for _, plural, body in store.writes if plural == "events"]
    assert event["involvedObject"]["uid"] == "pod-of-a" and event["type"] == "Warning"
    assert event["message"].endswith("has not ended and holds node n0")


@pytest.mark.parametrize(
    "kind", [CONFIG_MAPS, SERVICES, NETWORK_POLICIES, DISRUPTION_BUDGETS], ids=lambda k: k.plural
)
async def test_a_job_is_queued_once_an_object_of_a_deleted_job_of_its_name_is_gone(
    store: Store, controller: Controller, monkeypatch: pytest.MonkeyPatch, kind: Resource
) -> None:
    world = JobWorld(controller, store, monkeypatch, {})
    before = JobIdentity("ns", "job", "old")
    bodies = dict(job_resources(world.job, before, 0, "key"))
    left = (bodies | {DISRUPTION_BUDGETS: make_disruption_budget(before, 2)})[kind]
    left["metadata"] |= {"uid": "left", "resourceVersion": "3"}
    informers = controller.informers
    informer = informers.budgets if kind == DISRUPTION_BUDGETS else informers.children[kind]
    informer._upsert(Item(left))
    found = controller._reader.pending_jobs()["uid"]
    assert isinstance(found, Unschedulable) and f"such as {kind.plural} job" in found.message
    controller.scheduler._triggered.clear()
    informer._remove("left")
    assert controller.scheduler._triggered.is_set(), "a cycle follows at once"
    assert isinstance(controller._reader.pending_jobs()["uid"], PendingJob)


async def test_a_deletion_that_takes_long_is_logged(
    controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    put_job(controller, "a", deletionTimestamp="2026-01-01T00:00:00Z")
    controller.reconcile("a")
    await until(lambda: log_has(caplog, "and waits for its finalizers"))


async def test_only_the_finalizer_of_earlier_versions_is_removed(
    store: Store, controller: Controller
) -> None:
    finalizers = ["example.com/mine", labels.FINALIZER, *(f"example.com/{i}" for i in range(2000))]
    job = job_object("job", "ns")
    job["metadata"] |= {"uid": "a", "resourceVersion": "9", "finalizers": finalizers}
    store.objects[JOBS.plural, "job"] = job
    put_job(controller, "a", finalizers=[labels.FINALIZER])
    controller.reconcile("a")
    await until(lambda: bool(store.writes))
    kept = [name for name in finalizers if name != labels.FINALIZER]
    patch = {"metadata": {"finalizers": kept, "resourceVersion": "9"}}
    assert store.writes == [("patch", JOBS.plural, patch)]
    job["metadata"]["finalizers"] = kept
    assert not await controller._writer.remove_finalizer(make_observed())
    store.objects.clear()
    assert not await controller._writer.remove_finalizer(make_observed())
    assert len(store.writes) == 1, "nothing to remove"


@pytest.mark.parametrize(
    "error",
    [
        ForbiddenError(403, "Forbidden", "denied by a policy"),
        UnavailableError(500, "InternalError", "failed calling webhook"),
    ],
)
async def test_a_job_whose_finalizer_stays_is_reconciled(
    store: Store, controller: Controller, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    async def refuse(_resource: Resource, _name: str, body: Object, *_: Any, **__: Any) -> Object:
        store.writes.append(("patch", JOBS.plural, body))
        raise error

    async def patch_status(_resource: Resource, _name: str, body: Object, *_: Any) -> Object:
        store.writes.append(("status", JOBS.plural, body))
        return {"metadata": {"resourceVersion": "7"}}

    monkeypatch.setattr(store, "patch", refuse)
    monkeypatch.setattr(store, "patch_status", patch_status)
    job = job_object("job", "ns")
    job["metadata"] |= {"uid": "a", "resourceVersion": "7", "finalizers": [labels.FINALIZER]}
    store.objects[JOBS.plural, "job"] = job
    put_job(controller, "a", finalizers=[labels.FINALIZER])
    controller.reconcile("a")

    def statuses() -> int:
        controller.wake("a")
        return sum(kind == "status" for kind, *_ in store.writes)

    await until(lambda: statuses() >= 3)
    patches = sum(kind == "patch" for kind, *_ in store.writes)
    assert patches == 1, "it is not tried again with each reconcile"


async def test_a_loop_outlives_a_late_renewal_of_the_lease(
    store: Store, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[bool] = []

    async def patch_status(*_: Any) -> Object:
        tries.append(True)
        if len(tries) == 1:
            raise LeaseLostError("the API server answers slowly")
        return {"metadata": {"resourceVersion": "7"}}

    monkeypatch.setattr(store, "patch_status", patch_status)
    put_job(controller, "a")
    controller.reconcile("a")
    await until(lambda: len(tries) == 1)
    controller.wake("a")
    await until(lambda: len(tries) >= 2)
    assert len(controller._loops) == 1


async def test_a_job_that_is_deleted_while_it_waits_for_a_turn_leaves_nothing(
    controller: Controller,
) -> None:
    put_job(controller, "a")
    async with AsyncExitStack() as turns:
        for _ in range(CONCURRENT_DECISIONS):
            await turns.enter_async_context(controller._deps.turns.take("other"))
        controller.reconcile("a")
        for _ in range(10):
            await asyncio.sleep(0)
        controller.informers.jobs._remove("a")
    await until(lambda: len(controller._loops) == 0)
    assert not controller._checked._checked and not controller._assessments._known


@pytest.mark.parametrize(("deleted", "pods"), [(False, 2), (True, 0)])
async def test_a_job_that_is_deleted_while_its_gang_starts_gets_no_more_pods(
    store: Store, controller: Controller, deleted: bool, pods: int
) -> None:
    observed = make_observed(status())
    actions = Actions(status=observed.view.status, changed=False, create_pods=(0, 1))
    done = await controller._writer.create_pods(
        observed, actions, Expectations(), lambda: not deleted
    )
    assert done is None
    assert [kind for _, kind, _ in store.writes].count("pods") == pods


def test_a_job_remains_until_its_deletion(controller: Controller) -> None:
    loop = module.Reconciler("a", controller._deps)
    assert not loop._job_remains()
    put_job(controller, "a")
    assert loop._job_remains()
    put_job(controller, "a", resourceVersion="8", deletionTimestamp="2026-01-01T00:00:00Z")
    assert not loop._job_remains()


@pytest.mark.parametrize(
    ("name", "said"), [("job", "a deleted job of the same name; waiting"), ("other", "delete it")]
)
async def test_who_has_the_name_of_a_child(
    store: Store, controller: Controller, name: str, said: str
) -> None:
    store.objects[SERVICES.plural, "job"] = {
        "metadata": {"name": "job", "ownerReferences": [JobIdentity("ns", name, "old").owner()]}
    }
    identity = JobIdentity("ns", "job", "new")
    with pytest.raises(_CreateRefusedError, match=said) as caught:
        await controller._writer._create_or_adopt(SERVICES, make_service(identity), identity)
    assert caught.value.create_error.reason == "NameConflict"
