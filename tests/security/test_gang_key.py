"""The key of a gang survives restarts of the operator, and only the ConfigMap has it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from llmtrain_cli.run.local_run import _write_key
from llmtrain_operator.errors import AlreadyExistsError
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.namespace_limits import WriteLimiter
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.manifests.gang_scheduling import GangScheduling
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.writer import JobWriter
from llmtrain_trainer.runtime.gang_key import read_gang_key
from tests.support.operator_harness.observed import make_observed, status

pytestmark = pytest.mark.unit

Object = dict[str, Any]


class Objects:
    """What the API server stores; objects of one kind and name are created once."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], Object] = {}

    async def create(self, resource: Resource, body: Object, _: str, *, dry_run: bool) -> Object:
        assert not dry_run
        place = (resource.plural, body["metadata"]["name"])
        if place in self.stored:
            raise AlreadyExistsError(409, "AlreadyExists", "it exists")
        self.stored[place] = copy.deepcopy(body)
        self.stored[place]["metadata"]["resourceVersion"] = str(len(self.stored))
        return self.stored[place]

    async def get(self, resource: Resource, name: str, _: str) -> Object:
        return self.stored[resource.plural, name]

    def files(self, attempt: int = 0) -> dict[str, str]:
        data: dict[str, str] = self.stored["configmaps", f"job-job-{attempt}"]["data"]
        return data


async def _create_pods(objects: Objects, attempt: int = 0, **known: Any) -> None:
    """Create the pods of an attempt, as an operator that has just started."""
    observed = make_observed({**status(), "attempt": attempt}, **known)
    actions = Actions(status=observed.view.status, changed=False, create_pods=(0, 1))
    writer = JobWriter(objects, WriteLimiter(1000), GangScheduling())  # type: ignore[arg-type]
    assert await writer.create_pods(observed, actions, Expectations()) is None


async def test_a_restart_of_the_operator_keeps_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    objects = Objects()
    await _create_pods(objects)
    key = objects.files()["gang-key"]
    assert len(bytes.fromhex(key)) == 32
    await _create_pods(objects)
    await _create_pods(objects, attempt=1)
    assert objects.files()["gang-key"] == key != objects.files(1)["gang-key"]
    assert ("pods", "job-1-1") in objects.stored
    assert key not in caplog.text
    with_key = [place for place, body in objects.stored.items() if key in str(body)]
    assert with_key == [("configmaps", "job-job-0")]


async def test_a_config_map_that_is_created_again_has_the_same_key() -> None:
    objects = Objects()
    await _create_pods(objects, gang_key="ab" * 32)
    assert objects.files()["gang-key"] == "ab" * 32


async def test_two_jobs_have_different_keys() -> None:
    first, second = Objects(), Objects()
    await _create_pods(first)
    await _create_pods(second)
    assert first.files()["gang-key"] != second.files()["gang-key"]


async def test_an_attempt_that_an_older_operator_has_started_stays_without_a_key() -> None:
    """Pods of one gang must not have different keys, and those that exist have none."""
    objects = Objects()
    await _create_pods(objects, gang_key="")
    assert set(objects.files()) == {"job.json"}


def test_a_local_run_has_a_new_key_that_other_users_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "gang-key"
    keys = set()
    for _ in range(2):
        _write_key(path)
        keys.add(read_gang_key(tmp_path, 0))
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(keys) == 2 and None not in keys
