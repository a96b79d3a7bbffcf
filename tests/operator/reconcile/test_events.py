"""Which changes of the conditions get an Event."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmtrain_core.api.conditions import ConditionType, Reason, set_condition
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.reconcile.events import conditions_to_report

pytestmark = pytest.mark.unit

Change = tuple[ConditionType, bool, Reason]
NOW = "2026-01-01T00:00:00Z"
ACCEPTED: Change = (ConditionType.ACCEPTED, True, Reason.VALID)
QUEUED: Change = (ConditionType.PLACED, False, Reason.QUEUED)
PLACED: Change = (ConditionType.PLACED, True, Reason.PLACED)
STARTING: Change = (ConditionType.PODS_READY, False, Reason.PODS_STARTING)
READY: Change = (ConditionType.PODS_READY, True, Reason.ALL_PODS_READY)
RUNNING: Change = (ConditionType.RUNNING, True, Reason.TRAINING)
NOT_RUNNING: Change = (ConditionType.RUNNING, False, Reason.GANG_RESTART)
RESTARTING: Change = (ConditionType.RESTARTING, True, Reason.GANG_RESTART)
NO_GPUS: Change = (ConditionType.PLACED, False, Reason.INSUFFICIENT_GPUS)
NO_CHECKPOINT: Change = (ConditionType.RESUMABLE, False, Reason.NO_CHECKPOINT)
NO_IMAGE: Change = (ConditionType.PODS_READY, False, Reason.IMAGE_PULL_FAILED)
SUCCEEDED: Change = (ConditionType.SUCCEEDED, True, Reason.COMPLETED)


def view(changes: Sequence[Change]) -> JobView:
    conditions: list[dict[str, object]] = []
    for kind, value, reason in changes:
        conditions = set_condition(conditions, kind, value, reason, "", generation=1, now=NOW)
    return JobView.of({"metadata": {}, "spec": {}, "status": {"conditions": conditions}})


@pytest.mark.parametrize(
    ("before", "changes", "reported"),
    [
        pytest.param([], [ACCEPTED, QUEUED], ["Valid"], id="accepted"),
        pytest.param([], [ACCEPTED, PLACED], ["Placed"], id="accepted and placed at once"),
        pytest.param(
            [], [ACCEPTED, NO_CHECKPOINT, PLACED], ["NoCheckpoint", "Placed"], id="no checkpoint"
        ),
        pytest.param([], [ACCEPTED, NO_GPUS], ["Valid", "InsufficientGpus"], id="no room"),
        pytest.param([ACCEPTED, QUEUED], [PLACED, STARTING], ["Placed"], id="placed"),
        pytest.param([ACCEPTED, PLACED], [STARTING], ["PodsStarting"], id="pods exist"),
        pytest.param([ACCEPTED, PLACED], [NO_IMAGE], ["ImagePullFailed"], id="no image"),
        pytest.param([ACCEPTED, PLACED, STARTING], [READY, RUNNING], ["Training"], id="runs"),
        pytest.param([ACCEPTED, PLACED, RUNNING], [READY], ["AllPodsReady"], id="ready later"),
        pytest.param(
            [ACCEPTED, PLACED, READY, RUNNING],
            [RESTARTING, NOT_RUNNING, STARTING],
            ["GangRestart", "PodsStarting"],
            id="restart",
        ),
        pytest.param([ACCEPTED, RUNNING], [SUCCEEDED, NOT_RUNNING], ["Completed"], id="ends"),
        pytest.param([ACCEPTED, PLACED], [ACCEPTED, PLACED], [], id="nothing new"),
    ],
)
def test_one_event_for_each_transition(
    before: list[Change], changes: list[Change], reported: list[str]
) -> None:
    found = conditions_to_report(view(before), view([*before, *changes]))
    assert sorted(c["reason"] for c in found) == sorted(reported)
