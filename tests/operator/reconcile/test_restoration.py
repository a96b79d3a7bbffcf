"""Which objects of a running job are restored, and which ones of earlier attempts go. Pure."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.child_record import ChildRecord, child_record
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.kube.resources import CONFIG_MAPS, NETWORK_POLICIES, SERVICES, Resource
from llmtrain_operator.manifests.job_resources import job_resources
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.reconcile.restoration import (
    Accepted,
    find_repairs,
    known_gang_key,
    needs_children,
    restoring_patch,
)
from tests.support.operator_harness.observed import (
    PLACEMENT,
    make_observed,
    pod,
    settle,
    status,
)

pytestmark = pytest.mark.unit

Object = dict[str, Any]
KEY = "ab" * 32
GANG = (pod(0), pod(1))
IDENTITY = JobIdentity("ns", "job", "uid")


def view(attempt: int = 0, *true: ConditionType) -> JobView:
    placement = {**PLACEMENT, "attempt": attempt}
    return make_observed(status(*true, attempt=attempt, placement=placement)).view


def wanted(attempt: int = 0, key: str = KEY) -> list[tuple[Resource, Object]]:
    raw = make_observed().raw
    return job_resources(raw, IDENTITY, attempt, key)


def stored(resource: Resource, body: Object) -> ChildRecord:
    """The record of an object as the API server returns it."""
    name = body["metadata"]["name"]
    metadata = {**body["metadata"], "uid": f"uid-{name}", "resourceVersion": "5"}
    return child_record(resource)({**body, "metadata": metadata})


def children(attempt: int = 0) -> list[ChildRecord]:
    return [stored(resource, body) for resource, body in wanted(attempt)]


def old_config_map(key: str = KEY) -> ChildRecord:
    """The ConfigMap of a job that an earlier version has started."""
    body = copy.deepcopy(wanted(0, key)[0][1])
    body["metadata"]["name"] = "job-job"
    del body["metadata"]["labels"]["llmtrain.dev/attempt"]
    return stored(CONFIG_MAPS, body)


def differing(
    found: list[ChildRecord], accepted: Accepted | None = None, attempt: int = 0
) -> list[str]:
    """Kinds of the objects to restore."""
    repairs = find_repairs(view(attempt), wanted(attempt), found, GANG, accepted or {})
    return [resource.plural for resource, _ in repairs.differing]


def old(found: list[ChildRecord], pods: tuple[PodRecord, ...], *true: ConditionType) -> list[str]:
    """Names of the objects to delete in attempt 2."""
    repairs = find_repairs(view(2, *true), wanted(2), found, pods, {})
    return [child.name for child in repairs.old]


def test_a_job_whose_objects_are_as_created_needs_nothing() -> None:
    assert differing(children()) == []


def test_what_is_deleted_is_restored() -> None:
    assert differing([]) == ["configmaps", "services", "networkpolicies"]
    for index, (resource, _) in enumerate(wanted()):
        rest = children()[:index] + children()[index + 1 :]
        assert differing(rest) == [resource.plural]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SERVICES, "selector", {"app": "other"}),
        (SERVICES, "publishNotReadyAddresses", False),
        (SERVICES, "ports", []),
        (NETWORK_POLICIES, "ingress", [{}]),
        (NETWORK_POLICIES, "podSelector", {}),
        (NETWORK_POLICIES, "policyTypes", ["Egress"]),
    ],
)
def test_what_is_edited_is_restored(kind: Resource, field: str, value: Any) -> None:
    body = copy.deepcopy(dict(wanted())[kind])
    body["spec"][field] = value
    edited = [child for child in children() if child.resource != kind] + [stored(kind, body)]
    assert differing(edited) == [kind.plural]
    patch = restoring_patch(
        kind, {**body, "metadata": {"resourceVersion": "5"}}, dict(wanted())[kind]
    )
    assert patch["metadata"]["resourceVersion"] == "5", "a change meanwhile makes a conflict"
    assert patch["metadata"]["labels"]["llmtrain.dev/job-uid"] == "uid"
    assert list(patch["spec"]) == [field]


def test_a_patch_removes_what_was_added_to_a_selector() -> None:
    body = dict(wanted())[SERVICES]
    found = copy.deepcopy(body)
    found["metadata"]["resourceVersion"] = "5"
    found["spec"]["selector"]["app"] = "other"
    assert restoring_patch(SERVICES, found, body)["spec"] == {"selector": {"app": None}}


def test_fields_that_the_api_server_or_others_set_are_no_edit() -> None:
    body = copy.deepcopy(dict(wanted())[SERVICES])
    body["spec"] |= {"clusterIPs": ["None"], "sessionAffinity": "None", "ipFamilies": ["IPv4"]}
    body["metadata"]["labels"]["team"] = "research"
    found = [child for child in children() if child.resource != SERVICES]
    assert differing([*found, stored(SERVICES, body)]) == []


def test_what_a_webhook_makes_of_our_object_is_accepted_once_it_was_restored() -> None:
    body = copy.deepcopy(dict(wanted())[NETWORK_POLICIES])
    body["spec"]["ingress"].append({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]})
    changed = stored(NETWORK_POLICIES, body)
    found = [child for child in children() if child.resource != NETWORK_POLICIES]
    assert differing([*found, changed]) == ["networkpolicies"]
    assert differing([*found, changed], {(NETWORK_POLICIES, "job"): changed.digest}) == []


def test_an_object_that_is_being_deleted_is_restored_when_it_is_gone() -> None:
    assert differing([replace(child, deleting=True) for child in children()]) == []


def test_config_maps_of_earlier_attempts_go_with_their_pods() -> None:
    found = [*children(2), children(0)[0], children(1)[0]]
    pods = (pod(0, attempt=1, deleting=True), pod(0, attempt=2))
    assert old(found, pods) == ["job-job-0"]
    assert old(found, pods[1:]) == ["job-job-0", "job-job-1"]
    assert old([*children(2), children(3)[0]], pods) == [], "the status is older than the object"


def test_the_config_map_of_an_earlier_version_goes_once_its_pods_have_started() -> None:
    found, pods = [*children(2), old_config_map()], (pod(0, attempt=2), pod(1, attempt=2))
    assert old(found, pods) == []
    assert old(found, pods, ConditionType.RUNNING) == ["job-job"]


def test_a_gang_of_an_earlier_version_keeps_its_config_map() -> None:
    found = [child for child in children() if child.resource != CONFIG_MAPS]
    assert differing([*found, old_config_map()]) == []
    running = view(0, ConditionType.RUNNING)
    assert not find_repairs(running, wanted(), [*found, old_config_map()], GANG, {}).old


@pytest.mark.parametrize("key", [KEY, ""])
def test_new_pods_of_an_old_gang_have_the_key_of_the_others(key: str) -> None:
    before = [old_config_map(key)]
    assert known_gang_key(view(), before, GANG) == key
    assert known_gang_key(view(), before, ()) is None, "a new attempt gets a new one"
    assert known_gang_key(view(), [*before, *children()], GANG) == KEY
    assert known_gang_key(view(1), children(0), (pod(0, attempt=1),)) is None


def test_the_key_is_in_no_text_about_the_record() -> None:
    assert KEY not in repr(children()) and children()[0].gang_key == KEY
    assert KEY not in repr(make_observed(gang_key=KEY))


def needs(observed: Observed) -> bool:
    _, settled = settle(observed)
    return needs_children(settled, decide(settled))


def test_only_pods_that_have_not_ended_need_the_objects() -> None:
    running = status(ConditionType.RUNNING)
    assert needs(make_observed(running, pods=GANG))
    assert needs(make_observed(status(), pods=(pod(0, "Pending"), pod(1, "Pending"))))
    assert not needs(make_observed(status(), pods=(pod(0, "Pending"),))), "more are created"
    assert not needs(make_observed(status(), pods=()))
    over = (pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert not needs(make_observed(running, pods=over))
    assert not needs(make_observed(running, spec={"suspend": True}, pods=GANG))
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert not needs(make_observed(running, metadata=deleted, pods=GANG))
