"""A gang of any size is created from one template, and never in memory whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ForbiddenError
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import Object
from llmtrain_operator.kube.resources import PODS, Resource
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile import writer as module
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.writer import MAX_CONCURRENT_REQUESTS
from tests.support.operator_harness.observed import make_observed, status
from tests.support.operator_harness.store import Store, until

pytestmark = pytest.mark.unit

SIZE = 100


class SlowStore(Store):
    """A store that answers about pods besides the first one once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.refused = ""

    async def create(self, resource: Resource, body: Object, *rest: Any, **more: Any) -> Object:
        made = await super().create(resource, body, *rest, **more)
        if resource is PODS and not body["metadata"]["name"].endswith("-0"):
            await self.answers.wait()
        if resource is PODS and body["metadata"]["name"] == self.refused:
            raise ForbiddenError(403, "Forbidden", "not this one")
        return made

    @property
    def pods(self) -> list[str]:
        """Names of the pods of which creation was asked for."""
        return [body["metadata"]["name"] for _, kind, body in self.writes if kind == "pods"]


@pytest.fixture
async def store() -> AsyncIterator[SlowStore]:
    found = SlowStore()
    yield found
    await found.close()


@pytest.fixture
async def controller(store: SlowStore) -> AsyncIterator[Controller]:
    found = Controller(parse([]), store, Metrics(), lambda _name: None)
    yield found
    await found.stop()


def start_gang(controller: Controller) -> asyncio.Task[Any]:
    block = {"path": "leaf", "nodes": [f"n{index}" for index in range(SIZE)]}
    levels = [{"level": "node", "domains": SIZE}]
    placement = {"attempt": 0, "gpusPerNode": 2, "blocks": [block], "levels": levels}
    spec = {
        "workers": {"nodes": SIZE, "gpusPerNode": 2},
        "parallelism": {"tensor": 2, "data": SIZE},
        "training": {"steps": 100, "globalBatchSize": SIZE, "microBatchSize": 1},
    }
    observed = make_observed(status(placement=placement), spec=spec)
    pods = tuple(range(SIZE))
    actions = Actions(status=observed.view.status, changed=False, create_pods=pods)
    return asyncio.create_task(controller._writer.create_pods(observed, actions, Expectations()))


async def test_the_bodies_of_a_gang_are_made_from_one_template_when_they_are_sent(
    store: SlowStore, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, bodies = list[Any](), list[int]()
    make_template, make_body = module.make_pod_template, module.pod_of_node

    def template(*args: Any, **more: Any) -> Object:
        templates.append(make_template(*args, **more))
        return templates[-1]

    def body(*args: Any) -> Object:
        bodies.append(args[4])
        return make_body(*args)

    monkeypatch.setattr(module, "make_pod_template", template)
    monkeypatch.setattr(module, "pod_of_node", body)
    creation = start_gang(controller)
    await until(lambda: len(store.pods) == 1 + MAX_CONCURRENT_REQUESTS)
    assert len(bodies) == 1 + MAX_CONCURRENT_REQUESTS, "no body before its request"
    store.answers.set()
    assert await creation is None
    assert sorted(bodies) == list(range(SIZE)) and len(templates) == 1
    assert sorted(store.pods) == sorted(f"job-0-{index}" for index in range(SIZE))


async def test_pods_after_a_refused_one_are_created_and_its_error_is_told(
    store: SlowStore, controller: Controller
) -> None:
    store.answers.set()
    store.refused = "job-0-7"
    error = await start_gang(controller)
    assert error is not None and "job-0-7" in error.message
    assert len(store.pods) == SIZE
