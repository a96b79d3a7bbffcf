"""What the API server refuses for one object stops nothing else of the job. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import PendingJob
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ForbiddenError
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import Item
from llmtrain_operator.kube.resources import DISRUPTION_BUDGETS
from llmtrain_operator.reconcile.expectations import Expectations
from tests.support.operator_harness.job_world import OWNER, JobWorld, moment
from tests.support.operator_harness.observed import PLACEMENT, assignment, make_observed, status
from tests.support.operator_harness.store import Store

pytestmark = pytest.mark.unit

MakeWorld = Callable[[dict[str, Any]], JobWorld]


@pytest.fixture
def make_world(store: Store, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    return lambda before: JobWorld(controller, store, monkeypatch, before)


def starting(attempt: int) -> dict[str, Any]:
    """A job that has got nodes for an attempt."""
    placement = {**PLACEMENT, "attempt": attempt}
    return status(attempt=attempt, placement=placement, attemptStartTime=moment())


@pytest.fixture
def drained(make_world: MakeWorld) -> JobWorld:
    """A running job with a budget, the first node of which is drained; its deadline has passed."""
    move = {"attempt": 0, "afterCheckpoint": 0, "deadline": moment(-5), "nodes": ["n0"]}
    saved = {"step": 5, "totalSteps": 9, "lastCheckpointStep": 5}
    before = status(ConditionType.RUNNING, attemptStartTime=moment(), progress=saved, move=move)
    found = make_world(before)
    found.put_nodes("n0", cordoned=True)
    found.put_nodes("n1")
    for index in (0, 1):
        found.put_pod(index)
    found.put_budget()
    return found


async def test_each_attempt_tries_again_to_create_the_pods(make_world: MakeWorld) -> None:
    world = make_world(starting(0))
    world.put_nodes("n0", "n1")
    world.refused.add(("create", "pods"))
    await world.reconcile(6)
    assert world.status["attempt"] == 1 and "placement" not in world.status
    world.refused.clear()
    del world.status["backoffUntil"]
    world.show(placement={**PLACEMENT, "attempt": 1}, attemptStartTime=moment())
    await world.reconcile(4)
    assert world.pods == {"job-1-0", "job-1-1"}


async def test_a_pod_that_does_not_end_excludes_its_node_from_the_next_placement(
    make_world: MakeWorld,
) -> None:
    world = make_world(status(placed=False, attempt=2))
    world.put_nodes("n0", "n1")
    world.put_pod(0, deletionTimestamp="2026-01-01T00:00:00Z")
    pending = world.controller._reader.pending_jobs()["uid"]
    assert isinstance(pending, PendingJob) and pending.request.excluded == {"n0"}


async def test_a_budget_that_may_not_be_deleted_stops_no_start(make_world: MakeWorld) -> None:
    world = make_world(starting(1))
    world.put_nodes("n0", "n1")
    world.put_budget()
    world.refused.add(("delete", "poddisruptionbudgets"))
    await world.reconcile(3)
    assert world.pods == {"job-1-0", "job-1-1"} and not world.budget_is_deleted()


async def test_the_budget_goes_at_the_deadline_while_status_writes_are_denied(
    drained: JobWorld,
) -> None:
    drained.refused.add(("patch", "llmtrainingjobs"))
    with pytest.raises(ForbiddenError):
        await drained.reconcile(1)
    assert drained.budget_is_deleted()


async def test_a_drain_waits_for_no_turn_to_start(drained: JobWorld) -> None:
    drained.controller.scheduler._jobs["uid"].assignment = assignment(1, "n1", "n2")
    turns = drained.controller._deps.start_turns
    while turns.take(f"other-{len(turns._held)}", "other"):
        pass
    await drained.reconcile(1)
    assert drained.budget_is_deleted()
    assert drained.status["attempt"] == 1, "the job has moved; only its pods wait for a turn"


async def test_a_quota_of_config_maps_that_earlier_attempts_use_up_stops_no_restart(
    make_world: MakeWorld,
) -> None:
    world = make_world(starting(1))
    world.put_nodes("n0", "n1")
    world.put_config_map(0)
    world.refused.add(("create", "configmaps"))
    world.refusal = "exceeded quota: q, requested: configmaps=1, used: configmaps=2"
    await world.reconcile(3)
    assert world.deleted == [("configmaps", "job-job-0")] and not world.pods
    world.refused.clear()  # the quota has room for it
    await world.reconcile(1)
    assert world.pods == {"job-1-0", "job-1-1"}


async def test_an_object_that_cannot_be_restored_gets_one_event(make_world: MakeWorld) -> None:
    world = make_world(status(ConditionType.RUNNING, attemptStartTime=moment()))
    world.put_nodes("n0", "n1")
    for index in (0, 1):
        world.put_pod(index)
    kinds = ("configmaps", "services", "networkpolicies")
    world.refused |= {("create", plural) for plural in kinds}
    await world.reconcile(5)
    told = [text.split()[0] for text in world.events if "cannot be restored" in text]
    assert told == list(kinds)


@pytest.mark.parametrize("is_taken", [True, False])
async def test_a_budget_that_cannot_be_created_gets_one_event(
    make_world: MakeWorld, is_taken: bool
) -> None:
    world = make_world(status(ConditionType.RUNNING, attemptStartTime=moment()))
    world.put_nodes("n0", "n1")
    for index in (0, 1):
        world.put_pod(index)
    if is_taken:
        others = {"name": "job", "namespace": "ns", "uid": "users", "resourceVersion": "3"}
        selector = {"matchLabels": {"app": "other"}}
        world.controller.informers.budgets._upsert(
            Item({"metadata": others, "spec": {"minAvailable": 1, "selector": selector}})
        )
        world.taken.add((DISRUPTION_BUDGETS.plural, "job"))
    else:
        world.refused.add(("create", DISRUPTION_BUDGETS.plural))
    for _ in range(3):
        world.reconciler.budget.backoff.reset()
        await world.reconcile(1)
    [told] = [text for text in world.events if "a drain may evict pods" in text]
    assert ("is not owned by this job; delete it" in told) is is_taken
    assert (world.refusal in told) is not is_taken


async def test_a_budget_of_the_job_that_the_cache_does_not_show_gets_no_event(
    make_world: MakeWorld,
) -> None:
    world = make_world(status(ConditionType.RUNNING, attemptStartTime=moment()))
    world.put_nodes("n0", "n1")
    for index in (0, 1):
        world.put_pod(index)
    world.taken.add((DISRUPTION_BUDGETS.plural, "job"))
    await world.reconcile(2)
    assert not [text for text in world.events if "a drain may evict pods" in text]


@pytest.mark.parametrize(
    ("name", "text"),
    [("job", "belongs to a deleted job of the same name"), ("other", "is not owned by this job")],
)
async def test_a_taken_name_says_whether_a_deleted_job_has_it(
    store: Store, controller: Controller, name: str, text: str
) -> None:
    owner = {**OWNER, "apiVersion": "llmtrain.dev/v1alpha1", "name": name, "uid": "before"}
    taken = {"metadata": {"name": "job-job-0", "ownerReferences": [owner]}}
    store.objects["configmaps", "job-job-0"] = taken
    observed = make_observed(status())
    actions = Actions(status=observed.view.status, changed=False, create_pods=(0, 1))
    found = await controller._writer.create_pods(observed, actions, Expectations())
    assert found is not None and found.reason == "NameConflict" and text in found.message
