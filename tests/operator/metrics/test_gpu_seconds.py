"""GPU time by what the GPUs of jobs do."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.validation.check import Job, Problem, check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.metrics.gpu_seconds import GpuSeconds, gpu_uses
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import PLACEMENT, status

pytestmark = pytest.mark.unit

SPEC = job_object("job", "ns")["spec"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def uses(found: dict[str, Any], spec: dict[str, Any] | None = None) -> dict[str, int]:
    def checked() -> Job | list[Problem]:
        return check("job", spec or SPEC)

    return dict(gpu_uses(JobView({}, spec or SPEC, found), checked))


@pytest.mark.parametrize(
    ("phase", "more", "use"),
    [
        ("Pending", {}, "waiting"),
        ("Queued", {}, "waiting"),
        ("Suspended", {}, "suspended"),
        ("Starting", {"placement": PLACEMENT}, "starting"),
        ("Running", {"placement": PLACEMENT}, "training"),
        ("Running", {"placement": PLACEMENT, "progress": {"phase": "saving"}}, "training"),
        ("Running", {"placement": PLACEMENT, "progress": {"phase": "preparing"}}, "starting"),
        ("Restarting", {"placement": PLACEMENT}, "restarting"),
    ],
)
def test_the_gpus_of_a_job(phase: str, more: dict[str, Any], use: str) -> None:
    assert uses({"phase": phase, **more}) == {use: 4}


def test_spare_nodes_are_held_and_idle() -> None:
    spares = {**PLACEMENT, "spares": [{"path": "leaf-1", "nodes": ["n2"]}]}
    assert uses({"phase": "Running", "placement": spares}) == {"training": 4, "spare": 2}


def test_jobs_that_hold_and_want_nothing() -> None:
    assert uses({"phase": "Rejected"}) == {}
    assert uses({"phase": "Queued"}, {**SPEC, "managedBy": "example.com/other"}) == {}
    assert uses({"phase": "Queued"}, {"model": {}}) == {}, "an invalid spec has no size"


def test_a_running_job_with_an_invalid_spec_keeps_its_gpus() -> None:
    running = {**status(), "phase": "Running"}
    assert uses(running, {"model": {}}) == {"training": 4}


def test_time_is_counted_between_changes() -> None:
    clock = Clock()
    found = GpuSeconds(clock)
    found.update("a", {"waiting": 4})
    clock.now += 10
    found.update("b", {"training": 2})
    clock.now += 5
    found.update("a", {"training": 4, "spare": 2})
    clock.now += 100
    totals = found.totals()
    assert totals["waiting"] == 4 * 15
    assert totals["training"] == 2 * 105 + 4 * 100
    assert totals["spare"] == 200
    found.update("a", {})
    found.update("b", {})
    clock.now += 1000
    assert found.totals() == totals, "reading and ending count nothing twice"


def test_a_change_of_nothing_costs_nothing() -> None:
    found = GpuSeconds(Clock())
    found.update("gone", {})
    found.update("gone", {})
    assert set(found.totals().values()) == {0.0}


def test_training_that_is_repeated_is_lost() -> None:
    clock = Clock()
    found = GpuSeconds(clock)
    found.update("a", {"training": 8})
    clock.now += 60
    found.undo("a", 8 * 20.0)
    found.update("a", {"restarting": 8})
    clock.now += 10
    found.update("a", {"training": 8})
    clock.now += 15
    during = found.totals()
    assert (during["training"], during["lost"], during["restarting"]) == (480, 120, 80)
    clock.now += 15
    after = found.totals()
    assert (after["training"], after["lost"]) == (480 + 80, 160)
    assert sum(after.values()) == 8 * 100, "every second is in one sum"
    clock.now += 10
    assert found.totals()["lost"] == 160


def test_what_two_failures_undo_adds_up() -> None:
    clock = Clock()
    found = GpuSeconds(clock)
    found.update("a", {"training": 1})
    found.update("other", {"training": 1})
    found.undo("a", 5)
    found.undo("a", 5)
    clock.now += 20
    totals = found.totals()
    assert (totals["training"], totals["lost"]) == (30, 10)


def test_a_job_that_is_gone_repeats_nothing() -> None:
    clock = Clock()
    found = GpuSeconds(clock)
    found.update("a", {"training": 1})
    found.undo("a", 5)
    found.update("a", {})
    found.update("a", {"training": 1})
    clock.now += 3
    assert found.totals()["lost"] == 0
