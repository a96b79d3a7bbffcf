"""The flag `--fixed-user` decides which user the pods have that the operator tries and creates."""

from __future__ import annotations

import pytest

from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile.expectations import Expectations
from tests.support.operator_harness.observed import make_observed, status
from tests.support.operator_harness.store import Store

pytestmark = pytest.mark.unit

WITHOUT = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
FIXED = {**WITHOUT, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], FIXED), (["--fixed-user=true"], FIXED), (["--fixed-user=false"], WITHOUT)],
)
async def test_the_user_of_all_pods(flags: list[str], expected: dict[str, object]) -> None:
    store = Store()
    controller = Controller(parse(flags), store, Metrics(), lambda _name: None)
    observed = make_observed(status())
    assert isinstance(observed.checked, Job)
    await controller._writer.try_pod(
        JobRecord("uid", "ns", "job", 1, observed.raw), observed.checked
    )
    actions = Actions(status=observed.view.status, changed=False, create_pods=(0, 1))
    assert await controller._writer.create_pods(observed, actions, Expectations()) is None
    await controller.stop()
    await store.close()
    pods = [body for _, kind, body in store.writes if kind == "pods"]
    assert len(pods) == 3
    assert [pod["spec"]["securityContext"] for pod in pods] == [expected] * 3
