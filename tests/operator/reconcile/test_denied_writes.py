"""A status write that the API server refuses is visible: Event on the job, metric and log."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ApiError, api_error
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import Object
from llmtrain_operator.kube.resources import PODS, Resource
from llmtrain_operator.reconcile.expectations import Expectations
from tests.support.operator_harness.observed import make_observed, status
from tests.support.operator_harness.store import Store, log_has, put_job, until

pytestmark = pytest.mark.unit

DENIED = 'admission webhook "policy.example.com" denied the request: no status'


@pytest.mark.parametrize(
    ("code", "reason", "text", "denied"),
    [
        (403, "Forbidden", DENIED, True),
        (400, "BadRequest", DENIED, True),
        (422, "Invalid", "status.phase: unsupported value", True),
        (500, "InternalError", "failed calling webhook: no endpoints", True),
        (500, "InternalError", "etcd is slow", False),
        (429, "TooManyRequests", "later", False),
        (409, "Conflict", "the object has been modified", False),
        (404, "NotFound", "gone", False),
    ],
)
def test_what_is_denied(code: int, reason: str, text: str, denied: bool) -> None:
    assert api_error(code, reason, text).denied is denied


async def test_a_denied_status_write_is_told(
    store: Store,
    controller: Controller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def deny(*_: Any) -> Object:
        error: ApiError = api_error(403, "Forbidden", DENIED)
        raise error

    monkeypatch.setattr(store, "patch_status", deny)
    put_job(controller, "a")
    controller.reconcile("a")
    counter = controller.metrics.denied_writes._value
    await until(lambda: counter.get() >= 2)
    [event] = [
        body for kind, plural, body in store.writes if (kind, plural) == ("create", "events")
    ]
    assert event["involvedObject"]["uid"] == "a"
    assert (event["type"], event["reason"]) == ("Warning", "StatusWriteDenied")
    assert event["message"].endswith(DENIED)
    assert log_has(caplog, "job=a reconcile failed") and log_has(caplog, DENIED)


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (403, "Forbidden", "Forbidden"),
        (422, "Invalid", "InvalidSpec"),
        (400, "BadRequest", "Forbidden"),
        (413, "RequestEntityTooLarge", "Forbidden"),
    ],
)
async def test_a_refusal_of_pods_has_one_fate_whatever_its_code_is(
    store: Store,
    controller: Controller,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: str,
    reason: str,
) -> None:
    async def refuse(resource: Resource, *_: Any, **__: Any) -> Object:
        if resource is PODS:
            raise api_error(code, kind, DENIED)
        return {"metadata": {"resourceVersion": "1"}}

    monkeypatch.setattr(store, "create", refuse)
    observed = make_observed(status())
    actions = Actions(status=observed.view.status, changed=False, create_pods=(0, 1))
    found = await controller._writer.create_pods(observed, actions, Expectations())
    assert found is not None and found.reason == reason and DENIED in found.message
