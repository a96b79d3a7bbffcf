"""What a job says if the API server refuses its pods because of the namespace."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.errors import ForbiddenError, InvalidError, api_error
from llmtrain_operator.kube.resources import PODS
from llmtrain_operator.reconcile.refusals import forbidden, invalid, naming_privileges
from tests.support.operator_harness.jobs import checked_job
from tests.support.operator_harness.pod_patches import ROOT_WITH_IPC_LOCK, SPEC

pytestmark = pytest.mark.unit

FIELD = "spec.containers[0].resources.requests"


def refused(message: str) -> Any:
    error = api_error(422, "Invalid", f'Pod "job-0-0" is invalid: {FIELD}: {message}')
    assert isinstance(error, InvalidError)
    return invalid(PODS, "job-0-0", error)


@pytest.mark.parametrize(("resource", "least"), [("memory", " (at least shmSize)"), ("cpu", "")])
def test_a_default_limit_below_the_request_names_the_remedy(resource: str, least: str) -> None:
    words = f"must be less than or equal to {resource} limit of 512Mi"
    error = refused(f'Invalid value: "1Gi": {words}')
    assert error.reason == "InvalidSpec"
    assert error.message.startswith(
        f"spec.workers.resources: a LimitRange or a webhook sets a {resource} limit below the"
        f" request{least}; set limits.{resource} above it, or change the LimitRange: "
    )
    assert error.message.endswith(words)


def test_other_messages_of_the_server_are_unchanged() -> None:
    error = refused("Required value")
    assert error.message == (
        f'pods job-0-0 is invalid: Pod "job-0-0" is invalid: {FIELD}: Required value'
    )


@pytest.mark.parametrize(
    ("said", "starts"),
    [
        (
            'error looking up service account team/runner: serviceaccount "runner" not found',
            'spec.workers.serviceAccountName: serviceaccount "runner" not found; create it',
        ),
        (
            'pod rejected: RuntimeClass "kata" not found',
            'spec.workers.runtimeClassName: RuntimeClass "kata" not found; create it',
        ),
    ],
)
def test_an_object_that_does_not_exist_is_named_with_its_field(said: str, starts: str) -> None:
    error = api_error(403, "Forbidden", f'pods "job-0-0" is forbidden: {said}')
    assert isinstance(error, ForbiddenError)
    refused = forbidden(PODS, "job-0-0", error)
    assert refused.reason == "ObjectNotFound" and refused.message.startswith(starts)


@pytest.mark.parametrize(
    "said",
    [
        'violates PodSecurity "restricted:latest": runAsUser=0 (pod must not set runAsUser=0)',
        "denied request: the operator creates no privileged containers, unless an administrator",
        "denied request: the operator creates no pods with host paths",
        "unable to validate against any security context constraint: []",
    ],
)
def test_a_refused_privilege_is_named_with_its_path(said: str) -> None:
    job = checked_job(workers={"podPatch": {"spec": ROOT_WITH_IPC_LOCK}})
    error = forbidden(PODS, "job-0-0", api_error(403, "Forbidden", f"pods is forbidden: {said}"))
    found = naming_privileges(error, job)
    assert found.reason == "Forbidden"
    path = f"{SPEC}.containers[0].securityContext.capabilities.add[0]"
    assert found.message.startswith(f"{path}: capability IPC_LOCK; {SPEC}.securityContext.runAs")
    assert "Pod Security level privileged; remove it, or let" in found.message
    assert naming_privileges(error, checked_job()) == error


def test_another_refusal_of_a_privileged_job_names_no_privilege() -> None:
    job = checked_job(workers={"podPatch": {"spec": ROOT_WITH_IPC_LOCK}})
    for status, said in ((403, "exceeded quota: gpus"), (403, "denied by the webhook of a mesh")):
        error = forbidden(PODS, "job-0-0", api_error(status, "Forbidden", said))
        assert naming_privileges(error, job) == error
