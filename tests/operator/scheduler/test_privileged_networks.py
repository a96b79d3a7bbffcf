"""Jobs with `auto` go on without a network whose privileges their namespace does not admit."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.queueing import PendingJob
from llmtrain_core.validation.check import check
from llmtrain_operator.scheduler.jobs import pending_job, running_job
from tests.support.operator_harness.observed import PLACEMENT, status
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit

REFUSED = "spec.network.profile: path of the node; needs a namespace with another level"
NOON = 1767268800.0


def waits(profile: str, permitted: bool = True, **ready: Any) -> bool:
    """Return whether the network of a job that waits may need privileges."""
    before = {**status(), "placement": None, "attempt": 1}
    kept = [each for each in before["conditions"] if each["type"] not in ("Placed", "PodsReady")]
    for kind, why in (("Placed", {}), ("PodsReady", ready)):
        condition = {"reason": "Queued", "message": "waiting in the queue", **why}
        kept.append({"type": kind, "status": "False", **condition})
    before["conditions"] = kept
    found = record("job", before, workers={"command": ["x"]}, network={"profile": profile})
    checked = check("job", found.raw["spec"])
    job = pending_job(found, checked, {}, {}, NOON, privileged_pods=permitted)
    assert isinstance(job, PendingJob), job
    return job.network.privileged_pods


def runs(row: str) -> bool:
    """Return the same of a job that runs with a network, for its next placement."""
    network = {"row": row, "fact": "a fact", "settings": []}
    before = status(ConditionType.RUNNING, placement=PLACEMENT, network=network)
    found = record("job", before, workers={"command": ["x"]})
    checked = check("job", found.raw["spec"])
    job = running_job(found, checked, {}, NOON, Request.of, privileged_pods=True)
    assert job is not None
    return job.next.network.privileged_pods


def test_a_job_with_auto_whose_pods_were_refused_goes_on_without() -> None:
    assert waits("auto") and not waits("auto", permitted=False)
    assert not waits("auto", reason="Forbidden", message=REFUSED)
    assert waits("auto", reason="Forbidden", message="denied by a webhook")
    assert waits("auto", reason="Unschedulable", message=REFUSED)


def test_a_job_that_names_the_profile_waits_for_the_permission() -> None:
    assert waits("tcpxo", reason="Forbidden", message=REFUSED)


def test_a_job_that_runs_without_moves_without() -> None:
    assert runs("gke-tcpxo") and not runs("tcp")
