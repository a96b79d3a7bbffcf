"""A patch that takes what is not of the job is refused with its path."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import Reason
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.job_record import job_record
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.pod_patches import (
    ATTACKS,
    LEGITIMATE,
    PATCH,
    PRIVILEGES,
    ROOT_WITH_IPC_LOCK,
    SPEC,
)

pytestmark = pytest.mark.unit

Object = dict[str, Any]


def checked(patch: Object, *, allowed: bool, **workers: Any) -> Job | list[Problem]:
    raw = job_object("job", "team", workers={**workers, "podPatch": patch})
    raw["metadata"] |= {
        "uid": "1",
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return CheckedJobs(allow_privileged_pods=allowed).get(job_record(raw))


def test_there_are_enough_attacks_and_legitimate_patches() -> None:
    assert len(ATTACKS) >= 40
    assert len(LEGITIMATE) >= 10


@pytest.mark.parametrize(("patch", "path", "workers"), ATTACKS, ids=lambda value: str(value)[:60])
def test_an_attack_is_refused_with_its_path(patch: Object, path: str, workers: Object) -> None:
    for allowed in (False, True):
        found = checked({"spec": patch}, allowed=allowed, **workers)
        assert isinstance(found, list)
        [problem] = [item for item in found if item.field == path]
        assert problem.message and problem.remedy and str(problem).startswith(path)


def test_a_patch_has_a_spec_and_no_metadata() -> None:
    found = checked({"metadata": {"labels": {"a": "b"}}}, allowed=True)
    assert isinstance(found, list)
    assert {item.field for item in found} == {f"{PATCH}.metadata", f"{PATCH}.spec"}


def test_a_patch_that_is_nested_deeply_is_refused() -> None:
    deep: Object = {}
    for _ in range(25):
        deep = {"a": deep}
    option = {"name": "a", "value": deep}
    found = checked({"spec": {"dnsConfig": {"options": [option]}}}, allowed=True)
    assert isinstance(found, list)
    # Specs of more than 32 levels are not read, and no message repeats the value.
    assert found[0].reason in (Reason.INVALID_SPEC, Reason.UNREADABLE)
    assert len(str(found[0])) < 400


@pytest.mark.parametrize("path", PRIVILEGES)
def test_a_privilege_needs_the_permission_of_the_operator(path: str) -> None:
    patch = {"spec": PRIVILEGES[path]}
    found = checked(patch, allowed=False)
    assert isinstance(found, list)
    [problem] = [item for item in found if item.field == path]
    assert problem.reason == Reason.FORBIDDEN
    assert "--allow-privileged-pods" in problem.remedy
    assert isinstance(checked(patch, allowed=True), Job)


def test_all_privileges_are_named_the_greatest_first() -> None:
    found = checked({"spec": ROOT_WITH_IPC_LOCK}, allowed=False)
    assert isinstance(found, list)
    assert [item.field for item in found] == [
        f"{SPEC}.containers[0].securityContext.capabilities.add[0]",
        f"{SPEC}.securityContext.runAsUser",
        f"{SPEC}.securityContext.runAsNonRoot",
    ]


@pytest.mark.parametrize("name", LEGITIMATE)
def test_a_legitimate_patch_is_accepted_and_needs_no_more_than_it_says(name: str) -> None:
    case = LEGITIMATE[name]
    patch = {"spec": case.patch}
    assert isinstance(checked(patch, allowed=True, **case.workers), Job)
    restricted = isinstance(checked(patch, allowed=False, **case.workers), Job)
    assert restricted == (case.level == "restricted")
