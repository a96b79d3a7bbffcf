"""A job that does not start leaves its turn to the next one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.controller import Controller
from llmtrain_operator.kube.api import Object
from llmtrain_operator.kube.namespace_limits import START_TURN_SECONDS, STARTING_JOBS
from llmtrain_operator.kube.resources import PODS, Resource
from tests.support.operator_harness.job_world import JobWorld, moment
from tests.support.operator_harness.observed import status
from tests.support.operator_harness.store import Store, until

pytestmark = pytest.mark.unit


@pytest.fixture
async def world(controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch) -> JobWorld:
    """A job that has its nodes and no pods. Jobs of others hold the other turns for ever."""
    placed = status(ConditionType.PLACED, startTime=moment(), attemptStartTime=moment())
    found = JobWorld(controller, store, monkeypatch, placed)
    found.put_nodes("n0", "n1")
    turns = controller._deps.start_turns
    monkeypatch.setattr(turns, "_seconds", 1e6)
    assert all(turns.take(f"other-{index}", "others") for index in range(STARTING_JOBS - 1))
    return found


async def test_a_job_whose_pods_are_refused_leaves_its_turn_at_once(
    controller: Controller, world: JobWorld
) -> None:
    world.refused.add(("create", PODS.plural))
    turns = controller._deps.start_turns
    await world.reconcile(2)  # the first one writes the status
    assert world.reconciler.create_error is not None and not world.pods
    assert not turns.take("next", "another"), "the job still has its turn"
    await world.reconciler._reconcile()
    assert turns.take("next", "another")


async def test_a_job_whose_pods_are_not_answered_leaves_its_turn_after_a_while(
    controller: Controller, world: JobWorld, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, asked = asyncio.Event(), asyncio.Event()

    async def create(resource: Resource, body: Object, *rest: Any, **more: Any) -> Object:
        if resource is PODS:
            asked.set()
            await never.wait()
        return await world.create(resource, body, *rest, **more)

    monkeypatch.setattr(store, "create", create)
    turns = controller._deps.start_turns
    monkeypatch.setattr(turns, "_seconds", START_TURN_SECONDS)
    started = asyncio.create_task(world.reconcile(2))
    async with asyncio.timeout(60):
        await asked.wait()
    await until(lambda: turns.take("next", "another"))
    assert not started.done()
    started.cancel()


def test_a_turn_is_two_seconds_long(controller: Controller) -> None:
    assert controller._deps.start_turns._seconds == START_TURN_SECONDS == 2.0
