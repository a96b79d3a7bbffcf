"""Labels, gates and PodGroups that the pods of a gang get for other schedulers."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.validation.check import Job, check
from llmtrain_operator.kube.resources import POD_GROUPS
from llmtrain_operator.manifests.gang_scheduling import KUEUE_GATE, KUEUE_QUEUE_NAME, GangScheduling
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import make_pod
from tests.support.devices.objects import claim_of_gang
from tests.support.operator_harness.harness import (
    job_object,
)
from tests.support.operator_harness.jobs import checked_job

pytestmark = pytest.mark.unit

QUEUED = {KUEUE_QUEUE_NAME: "team-queue"}


def gang_pods(
    scheduling: GangScheduling, labels: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    raw = job_object("job", "team")
    raw["metadata"] |= {"uid": "01234567-89ab", "labels": labels or {}}
    job = check("job", raw["spec"])
    assert isinstance(job, Job)
    identity = JobIdentity.of(raw)
    nodes = ("a", "b")
    return [
        scheduling.add_to_pod(make_pod(job, identity, 3, index, nodes), job, raw, 3, len(nodes))
        for index in range(2)
    ]


def test_nothing_is_added_by_default() -> None:
    for body in gang_pods(GangScheduling(), QUEUED):
        assert "schedulingGates" not in body["spec"]
        assert "schedulingGroup" not in body["spec"]
        assert not any("kueue" in key for key in body["metadata"]["labels"])
    assert gang_pods(GangScheduling(kueue=True)) == gang_pods(GangScheduling())


def test_claims_of_the_gang_are_those_of_the_pod_group_of_the_attempt() -> None:
    claims = [{**claim_of_gang(), "name": "own", "scope": "pod"}, claim_of_gang()]
    raw = {**job_object("job", "team", workers={"deviceClaims": claims})}
    raw["metadata"]["uid"] = "01234567-89ab"
    job, identity = checked_job(workers={"deviceClaims": claims}), JobIdentity.of(raw)
    scheduling = GangScheduling(pod_groups=True)
    [(resource, group)] = scheduling.resources(job, identity, 3)
    assert resource == POD_GROUPS
    assert group["metadata"]["name"] == "job.3"
    assert group["metadata"]["labels"]["llmtrain.dev/attempt"] == "3"
    shared = {"name": "storage", "resourceClaimTemplateName": "job.storage"}
    assert group["spec"]["resourceClaims"] == [shared]
    pod = make_pod(job, identity, 3, 0, ("a", "b"))
    spec = scheduling.add_to_pod(pod, job, raw, 3, 2)["spec"]
    assert spec["schedulingGroup"] == {"podGroupName": "job.3"}
    own = {"name": "own", "resourceClaimTemplateName": "job.own"}
    assert spec["resourceClaims"] == [own, shared], "Kubernetes compares all fields"
    [(_, plain)] = scheduling.resources(checked_job(), identity, 3)
    assert plain["metadata"]["name"] == "job" and "resourceClaims" not in plain["spec"]


def test_a_gang_is_one_pod_group_with_one_role() -> None:
    priority = {"kueue.x-k8s.io/priority-class": "urgent"}
    bodies = gang_pods(GangScheduling(kueue=True), {**QUEUED, **priority, "other": "label"})
    for body in bodies:
        assert priority.items() <= body["metadata"]["labels"].items()
        assert "other" not in body["metadata"]["labels"]
        assert body["spec"]["schedulingGates"] == [{"name": KUEUE_GATE}]
        assert body["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "job-012345-3"
        assert body["metadata"]["labels"]["llmtrain.dev/attempt"] == "3"
        assert body["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    roles = {body["metadata"]["annotations"]["kueue.x-k8s.io/role-hash"] for body in bodies}
    assert len(roles) == 1
