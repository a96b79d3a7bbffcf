"""A gang whose Secret, ConfigMap, key or pull secret is missing says so and returns its nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.missing_objects import pods_without_object
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.reconcile.first_seen import FirstSeen
from tests.support.operator_harness.observed import (
    ago,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.scheduling import quarantine_after, record

pytestmark = pytest.mark.unit

CREATING = pod(1, "Pending", reason="ContainerCreating", setting_up=True)
CONFIG = replace(CREATING, reason="CreateContainerConfigError", setting_up=False)
PULLING = replace(CREATING, reason="ImagePullBackOff", setting_up=False)
DENIED = "failed to authorize: unexpected status: 401 Unauthorized"
PULL_SECRETS = {"workers": {"imagePullSecrets": [{"name": "registry"}, {"name": "mirror"}]}}
MOUNT = 'FailedMount: MountVolume.SetUp failed for volume "keys" : '

WAITS: dict[str, tuple[PodRecord, str, str, str]] = {
    "secret of a variable": (
        replace(CONFIG, message='secret "hub" not found'),
        "",
        "ObjectNotFound",
        'secret "hub" not found; create it',
    ),
    "config map of a variable": (
        replace(CONFIG, message='configmap "site" not found'),
        "",
        "ObjectNotFound",
        'configmap "site" not found; create it',
    ),
    "key of a variable": (
        replace(CONFIG, message="couldn't find key token in Secret ns/hub"),
        "",
        "ObjectNotFound",
        "couldn't find key token in Secret ns/hub; create it",
    ),
    "secret of a volume": (
        CREATING,
        f'{MOUNT}secret "keys" not found',
        "ObjectNotFound",
        'secret "keys" not found; create it',
    ),
    "several of a volume": (
        CREATING,
        f'{MOUNT}[secret "keys" not found, configmap "ca" not found]',
        "ObjectNotFound",
        'configmap "ca" not found]; create it',
    ),
    "key of a volume": (
        CREATING,
        f"{MOUNT}references non-existent secret key: id",
        "ObjectNotFound",
        "references non-existent secret key: id; create it",
    ),
    "key of a config map": (
        CREATING,
        f"{MOUNT}configmap references non-existent config key: ca",
        "ObjectNotFound",
        "configmap references non-existent config key: ca; create it",
    ),
    "another error of the container": (
        replace(CONFIG, message="container has runAsNonRoot and image will run as root"),
        "",
        "CreateContainerConfigError",
        "container has runAsNonRoot and image will run as root",
    ),
    "pull secret": (
        replace(PULLING, message=DENIED),
        "",
        "ImagePullFailed",
        "spec.workers.imagePullSecrets: a registry refuses the credentials of registry, mirror",
    ),
}


def waiting(found: PodRecord, event: str, seconds: float, **more: Any) -> Observed:
    events = {found.uid: event} if event else {}
    more.setdefault("spec", PULL_SECRETS)
    return make_observed(
        status(attemptStartTime=ago(more.pop("started", 45))),
        pods=(pod(0), found),
        pod_events=events,
        missing_seconds={found.uid: seconds},
        **more,
    )


def has_released(actions: Actions) -> bool:
    return "placement" not in actions.status


@pytest.mark.parametrize(("found", "event", "why", "says"), WAITS.values(), ids=WAITS)
def test_the_nodes_are_returned_and_none_is_blamed(
    found: PodRecord, event: str, why: str, says: str
) -> None:
    assert pods_without_object([found], {found.uid: event})
    actions, _ = settle(waiting(found, event, seconds=29))
    assert not has_released(actions)
    assert reason(actions, ConditionType.PODS_READY) == ("False", why)
    assert says in text(actions, ConditionType.PODS_READY)
    assert "pod job-0-1 on node n1" in text(actions, ConditionType.PODS_READY)
    assert actions.reconcile_after == pytest.approx(1)

    actions, _ = settle(waiting(found, event, seconds=30))
    assert has_released(actions)
    assert reason(actions, ConditionType.PLACED) == ("False", why)
    assert says in text(actions, ConditionType.PLACED)
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 0)
    assert "failures" not in actions.status and actions.status["unstartedAttempts"] == 1
    assert actions.status["backoffUntil"] == ago(-5)
    assert [victim.index for victim in actions.delete_pods] == [0, 1]
    lists = quarantine_after([record("a", dict(actions.status))], 0.0)
    assert not lists.of("ns").suspects and not lists.of("other").suspects


@pytest.mark.parametrize(("found", "event", "why", "says"), WAITS.values(), ids=WAITS)
def test_a_short_startup_timeout_is_no_failure(
    found: PodRecord, event: str, why: str, says: str
) -> None:
    policy = {"failurePolicy": {"startupTimeout": "10s", "maxRestarts": 0}}
    actions, _ = settle(waiting(found, event, seconds=1, spec={**PULL_SECRETS, **policy}))
    assert has_released(actions) and "failures" not in actions.status
    assert reason(actions, ConditionType.PLACED) == ("False", why)


def test_each_time_the_job_waits_longer() -> None:
    found, event, _, _ = WAITS["secret of a volume"]
    before = waiting(found, event, seconds=30)
    before.raw["status"]["unstartedAttempts"] = 4
    actions, _ = settle(before)
    assert actions.status["backoffUntil"] == ago(-80)


@pytest.mark.parametrize(
    ("found", "event"),
    [
        (CREATING, "FailedAttachVolume: Multi-Attach error for volume"),
        (CREATING, f'{MOUNT}failed to sync secret cache: timed out waiting for "hub"'),
        (CREATING, 'FailedCreatePodSandBox: network "secret" not found'),
        (replace(CREATING, bound=False), 'secret "keys" not found'),
        (replace(CONFIG, deleting=True), ""),
        (pod(1), f'{MOUNT}secret "keys" not found'),
        (replace(PULLING, message="manifest unknown"), ""),
    ],
)
def test_other_delays_are_not_those_of_objects(found: PodRecord, event: str) -> None:
    assert not pods_without_object([found], {found.uid: event})


def test_without_pull_secrets_a_refused_image_fails_the_job_as_before() -> None:
    """A registry says the same of an image that does not exist."""
    denied = replace(PULLING, message=DENIED)
    actions, _ = settle(waiting(denied, "", seconds=99, spec={}))
    assert not has_released(actions)
    assert "spec.workers.image: " in text(actions, ConditionType.PODS_READY)
    actions, _ = settle(waiting(denied, "", seconds=99, spec={}, started=601))
    assert reason(actions, ConditionType.FAILED) == ("True", "ImagePullFailed")


def test_only_the_events_that_name_the_object_are_read_again() -> None:
    late = [pod(index, "Pending", reason="ContainerCreating") for index in (0, 1)]
    found = f'{MOUNT}secret "keys" not found'
    before = make_observed(
        status(attemptStartTime=ago(45)), pods=tuple(late), pod_events={late[1].uid: found}
    )
    actions, _ = settle(before)
    assert [record.index for record in actions.explain_pods] == [1]


def test_a_wait_counts_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("llmtrain_operator.reconcile.first_seen.time.monotonic", lambda: now)
    seen = FirstSeen[str]()
    assert seen.seconds(["a"]) == {"a": 0.0}
    now = 110.0
    assert seen.seconds(["a", "b"]) == {"a": 10.0, "b": 0.0}
    assert seen.seconds(["b"]) == {"b": 0.0}
    now = 120.0
    assert seen.seconds(["a", "b"]) == {"a": 0.0, "b": 10.0}
