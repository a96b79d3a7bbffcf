"""A gang whose pods change all the time leaves the event loop to the other jobs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llmtrain_operator.controller import Controller
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.reconcile import reconciler as module
from llmtrain_operator.reconcile.reconciler import EVENT_LOOP_SHARE, MAX_COALESCE_SECONDS
from tests.support.operator_harness.store import put_job, until

pytestmark = pytest.mark.unit


class SlowDecisions:
    """Decisions that take CPU time and change nothing."""

    def __init__(self, seconds: float):
        self.number = 0
        self._seconds = seconds

    def __call__(self, observed: Observed) -> Actions:
        self.number += 1
        end = time.thread_time() + self._seconds
        while time.thread_time() < end:
            pass
        return Actions(status=observed.view.status, changed=False)


@pytest.mark.parametrize("seconds", [0.02, 0.15])
async def test_decisions_take_a_part_of_the_event_loop(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    decide = SlowDecisions(seconds)
    monkeypatch.setattr(module, "decide", decide)
    put_job(controller, "a")
    controller.reconcile("a")
    await until(lambda: decide.number == 1)
    started, pauses = time.monotonic(), 3
    expected = pauses * min(seconds / EVENT_LOOP_SHARE, MAX_COALESCE_SECONDS)
    while decide.number <= pauses:
        controller.wake("a")
        await asyncio.sleep(0.001)
    assert time.monotonic() - started >= 0.99 * expected


async def test_a_quick_decision_follows_an_event_at_once(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, sleeps, sleep = SlowDecisions(0.0), list[float](), asyncio.sleep

    async def record(seconds: float, *rest: Any) -> None:
        sleeps.append(seconds)
        await sleep(seconds, *rest)

    monkeypatch.setattr(module, "decide", decide)
    monkeypatch.setattr(module.asyncio, "sleep", record)
    put_job(controller, "a")
    controller.reconcile("a")
    await until(lambda: decide.number == 1)
    controller.wake("a")
    await until(lambda: decide.number == 2)
    pause = module.COALESCE_SECONDS
    assert any(pause <= seconds < 10 * pause for seconds in sleeps)
