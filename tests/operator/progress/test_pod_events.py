"""What holds a starting pod up is in the condition: from container states, else from Events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.records import PodRecord, pod_record
from llmtrain_operator.errors import ForbiddenError
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.kube.api import Item, ListPage
from llmtrain_operator.kube.resources import EVENTS, Resource
from llmtrain_operator.progress import pod_events
from llmtrain_operator.progress.pod_events import PodEvents, delay_of
from tests.support.operator_harness.observed import (
    ago,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

MULTI_ATTACH = (
    'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'
)
NO_CNI = "failed to set up sandbox container network: no address in the pool"


def event(why: str, message: str, at: int, kind: str = "Warning", **more: Any) -> dict[str, Any]:
    found = {"reason": why, "message": message, "type": kind}
    return {**found, "lastTimestamp": f"2026-01-01T12:00:{at:02}Z", **more}


SCHEDULED = event("Scheduled", "assigned", 0, "Normal")
PULLING = event("Pulling", 'Pulling image "example.com/trainer:1"', 3, "Normal")


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([SCHEDULED], ""),
        ([SCHEDULED, PULLING], 'Pulling: Pulling image "example.com/trainer:1"'),
        ([event("Pulled", "in 3 s", 9, "Normal"), PULLING], ""),
        ([event("FailedAttachVolume", MULTI_ATTACH, 5)], f"FailedAttachVolume: {MULTI_ATTACH}"),
        (
            [event("FailedMount", "timed out", 2), event("FailedCreatePodSandBox", NO_CNI, 7)],
            f"FailedCreatePodSandBox: {NO_CNI}",
        ),
        (
            [
                event("FailedMount", "later", 0, series={"lastObservedTime": "2026-01-01T13:00"}),
                event("FailedCreatePodSandBox", NO_CNI, 7),
            ],
            "FailedMount: later",
        ),
        ([{"type": "Warning"}, {}], ":"),
        ([event("FailedMount", "x\x1b[31m\n" + "y" * 9000, 1)], None),
    ],
)
def test_the_newest_event_that_explains_a_delay(
    events: list[dict[str, Any]], says: str | None
) -> None:
    found = delay_of(events)
    if says is not None:
        assert found == says
    else:
        assert len(found) == pod_events.TEXT_LENGTH and found.isprintable()


class Server:
    """An API server that has Events of pods, and records what it is asked."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self._on_request = on_request

    async def list_page(
        self, resource: Resource, namespace: str, *, fields: str, limit: int
    ) -> ListPage:
        assert (resource, namespace, limit) == (EVENTS, "ns", pod_events.MAX_EVENTS)
        self.asked.append(fields)
        await asyncio.sleep(0)
        self._on_request()
        if self.error is not None:
            raise self.error
        return ListPage([Item(event("FailedMount", fields, 1))], 1, "")


async def test_a_few_pods_of_a_job_are_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, server, woken = 100.0, Server(), list[str]()
    monkeypatch.setattr(pod_events.time, "monotonic", lambda: now)
    events = PodEvents(server, woken.append)  # type: ignore[arg-type]
    pods = [pod(index, "Pending", reason="ContainerCreating") for index in range(5)]

    async def look() -> None:
        events.look_up("uid", pods)
        for _ in range(20):
            await asyncio.sleep(0)

    await look()
    assert server.asked == [f"involvedObject.uid=pod-0-{index}" for index in range(3)]
    assert set(woken) == {"uid"}
    assert events.findings("uid")["pod-0-0"] == "FailedMount: involvedObject.uid=pod-0-0"
    now += pod_events.PERIOD_SECONDS - 1
    await look()
    assert len(server.asked) == 3, "too early"
    now += 1
    await look()
    assert server.asked[3:] == [f"involvedObject.uid=pod-0-{index}" for index in (3, 4, 0)]
    now += pod_events.PERIOD_SECONDS
    pods = pods[:1]
    await look()
    assert events.findings("uid").keys() == {"pod-0-0"}, "the others have started"
    events.forget("uid")
    assert not events.findings("uid")


class Clock:
    """A clock that only requests and pauses advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


async def test_requests_take_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request makes the API server read all Events of the namespace."""
    clock, took = Clock(), 0.05
    monkeypatch.setattr(pod_events.time, "monotonic", lambda: clock.now)
    server = Server(lambda: clock.advance(took))
    events = PodEvents(server, lambda _: None, clock.sleep)  # type: ignore[arg-type]
    jobs = {f"uid-{job}": [pod(index, "Pending") for index in range(3)] for job in range(40)}

    began = clock.now
    while not all(events.findings(job) for job in jobs):
        clock.advance(0.1)
        for job, pods in jobs.items():
            events.look_up(job, pods)
        await asyncio.sleep(0)
    passed = clock.now - began
    assert len(jobs) <= len(server.asked) <= 1 + 0.02 * passed / took
    assert len(server.asked) < 2 * len(jobs), "the jobs take turns"


async def test_pods_that_have_started_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pod_events.time, "monotonic", lambda: clock.now)
    server = Server(lambda: clock.advance(15))
    events = PodEvents(server, lambda _: None, clock.sleep)  # type: ignore[arg-type]
    for job in ("one", "two"):
        events.look_up(job, [pod(0, "Pending")])
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(server.asked) == 1 and not events.findings("two"), "the pause is longer"


async def test_without_the_right_to_list_events_nothing_else_stops() -> None:
    server = Server()
    server.error = ForbiddenError(403, "Forbidden", "no right")
    events = PodEvents(server, lambda _: None)  # type: ignore[arg-type]
    assert events.look_up("uid", [pod(0, "Pending")]) == pod_events.PERIOD_SECONDS
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.asked and not events.findings("uid")


CREATING = pod(1, "Pending", reason="ContainerCreating")


def starting(*pods: PodRecord, seconds: float = 30, **more: Any) -> Observed:
    return make_observed(status(attemptStartTime=ago(seconds)), pods=pods, **more)


@pytest.mark.parametrize(("seconds", "asks"), [(4, False), (5, True)])
def test_events_are_read_only_for_pods_that_wait(seconds: float, asks: bool) -> None:
    actions, _ = settle(starting(pod(0), CREATING, seconds=seconds))
    assert [record.index for record in actions.explain_pods] == ([1] if asks else [])
    if not asks:
        assert actions.reconcile_after == pytest.approx(1)


def test_the_condition_names_pod_and_node() -> None:
    found = {"pod-0-1": f"FailedAttachVolume: {MULTI_ATTACH}"}
    actions, _ = settle(starting(pod(0), CREATING, pod_events=found))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsStarting")
    said = text(actions, ConditionType.PODS_READY)
    assert said == (
        f"1 of 2 pods are ready; pod job-0-1 on node n1: FailedAttachVolume: {MULTI_ATTACH}"
    )


@pytest.mark.parametrize(
    ("waiting", "why", "says"),
    [
        ("ImagePullBackOff", "ImagePullFailed", "pod job-0-1 on node n1: ImagePullBackOff: text"),
        (
            "CreateContainerError",
            "PodsStarting",
            "pod job-0-1, which is on node n1: CreateContainerError: text",
        ),
    ],
)
def test_the_state_of_a_container_comes_before_events(waiting: str, why: str, says: str) -> None:
    held = pod(1, "Pending", reason=waiting, message="text")
    actions, _ = settle(starting(pod(0), held, pod_events={"pod-0-1": "FailedMount: old"}))
    assert reason(actions, ConditionType.PODS_READY) == ("False", why)
    assert text(actions, ConditionType.PODS_READY).endswith(says)
    assert actions.explain_pods == ()


@pytest.mark.parametrize("main", ["PodInitializing", ""])
def test_the_image_of_an_init_container_is_seen(main: str) -> None:
    states = [{"state": {"running": {}}}, {"state": {"waiting": {"reason": "ErrImagePull"}}}]
    own = [{"state": {"waiting": {"reason": main}}}] if main else []
    raw = {
        "metadata": {"uid": "p", "name": "job-0-0", "namespace": "ns"},
        "spec": {"nodeName": "n0", "containers": []},
        "status": {"phase": "Pending", "initContainerStatuses": states, "containerStatuses": own},
    }
    assert pod_record(raw).reason == "ErrImagePull"


def test_an_init_container_that_runs_is_named_but_no_sidecar() -> None:
    states = [
        {"name": "proxy", "state": {"running": {}}},
        {"name": "fetch", "state": {"running": {}}, "started": True},
    ]
    raw = {
        "metadata": {"uid": "p", "name": "job-0-0", "namespace": "ns"},
        "spec": {
            "nodeName": "n0",
            "containers": [],
            "initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "fetch"}],
        },
        "status": {"phase": "Pending", "initContainerStatuses": states},
    }
    found = pod_record(raw)
    assert (found.reason, found.message) == ("PodInitializing", "init container fetch is running")
    held = pod(1, "Pending", reason=found.reason, message=found.message)
    actions, _ = settle(starting(pod(0), held))
    says = "1 of 2 pods are ready; pod job-0-1 on node n1: init container fetch is running"
    assert text(actions, ConditionType.PODS_READY) == says and actions.explain_pods == ()
    for started in ({}, {"started": True}):
        raw["status"]["initContainerStatuses"] = [{**states[0], **started}]
        assert pod_record(raw).reason == ""
    raw["status"]["initContainerStatuses"] = [{**states[0], "started": False}]
    found = pod_record(raw)
    says = "sidecar proxy has not passed its startup probe"
    assert (found.reason, found.message) == ("PodInitializing", says)
