"""One job in the caches of a controller, and an API server that refuses some writes."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import api_error
from llmtrain_operator.kube.api import Item, Object
from llmtrain_operator.kube.resources import (
    CONFIG_MAPS,
    DISRUPTION_BUDGETS,
    EVENTS,
    JOBS,
    PODS,
    Resource,
)
from llmtrain_operator.reconcile.reconciler import Reconciler
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.store import Store

OWNER = {"kind": "LLMTrainingJob", "uid": "uid", "controller": True}
JOB_UID = {labels.JOB_UID: "uid"}


def moment(seconds: float = 0.0) -> str:
    """The time of the machine after some seconds, as in a status."""
    return format_time(datetime.now(UTC) + timedelta(seconds=seconds))


class JobWorld:
    """A job `ns/job` with its reconciler, whose caches show each write of its status.

    `refused` has the writes that the API server denies with 403 and the text `refusal`: verb and
    plural, where the verb of a status is `patch`. `taken` has plural and name of objects of others,
    which exist. `created` and `deleted` have plural and name of
    what it accepts.
    """

    def __init__(
        self,
        controller: Controller,
        store: Store,
        monkeypatch: pytest.MonkeyPatch,
        status: dict[str, Any],
    ):
        self.controller = controller
        self.refused: set[tuple[str, str]] = set()
        self.refusal = "an admission webhook denied the request"
        self.taken: set[tuple[str, str]] = set()
        self.created: list[tuple[str, str]] = []
        self.deleted: list[tuple[str, str]] = []
        self.events: list[str] = []
        self.job = job_object("job", "ns")
        times = {"creationTimestamp": "2026-01-01T00:00:00Z"}
        self.job["metadata"] |= {"uid": "uid", "generation": 1, "resourceVersion": "7"} | times
        self.job["status"] = copy.deepcopy(status)
        self.show()
        controller.informers.pods.last_version = 99
        self.reconciler = Reconciler("uid", controller._deps)
        for name in ("create", "delete", "patch_status"):
            monkeypatch.setattr(store, name, getattr(self, name))

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.job["status"]
        return found

    @property
    def pods(self) -> set[str]:
        """Names of the pods that were created. The cache does not show them."""
        return {name for plural, name in self.created if plural == PODS.plural}

    def show(self, **status: Any) -> None:
        """Change fields of the status, and put the job into the cache."""
        self.status.update(status)
        metadata = self.job["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        jobs = self.controller.informers.jobs
        jobs._upsert(Item(copy.deepcopy(self.job)))
        jobs.last_version = int(metadata["resourceVersion"])

    def put_nodes(self, *names: str, cordoned: bool = False) -> None:
        amounts = {"nvidia.com/gpu": "2", "pods": "100", "cpu": "100", "memory": "1000Gi"}
        for name in names:
            item = {
                "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {}},
                "spec": {"unschedulable": cordoned},
                "status": {
                    "allocatable": amounts | {"ephemeral-storage": "1000Gi"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
            self.controller.informers.nodes._upsert(Item(item))

    def put_pod(self, index: int, **metadata: Any) -> None:
        """Put a running pod of the first attempt on the node of its index into the cache."""
        place = {labels.ATTEMPT: "0", labels.NODE_INDEX: str(index)}
        item = {
            "metadata": {
                "name": f"job-0-{index}",
                "namespace": "ns",
                "uid": f"pod-{index}",
                "resourceVersion": str(10 + index),
                "labels": JOB_UID | place,
                "ownerReferences": [OWNER],
                **metadata,
            },
            "spec": {"nodeName": f"n{index}", "containers": []},
            "status": {"phase": "Running"},
        }
        self.controller.informers.pods._upsert(Item(item))

    def put_budget(self) -> None:
        self.controller.informers.budgets._upsert(
            Item(
                {
                    "metadata": _metadata("job", {}),
                    "spec": {"minAvailable": 2, "selector": {"matchLabels": JOB_UID}},
                }
            )
        )

    def put_config_map(self, attempt: int) -> None:
        found = _metadata(f"job-job-{attempt}", {labels.ATTEMPT: str(attempt)})
        informer = self.controller.informers.children[CONFIG_MAPS]
        informer._upsert(Item({"metadata": found, "data": {}}))

    def budget_is_deleted(self) -> bool:
        return (DISRUPTION_BUDGETS.plural, "job") in self.deleted

    async def reconcile(self, times: int) -> None:
        """Reconcile so often, without the delays after errors of the API server."""
        for _ in range(times):
            self.reconciler.create_backoff.reset()
            self.reconciler.restorer.backoff.reset()
            await self.reconciler._reconcile()

    async def create(
        self, resource: Resource, body: Object, namespace: str | None = None, **_: Any
    ) -> Object:
        if resource == EVENTS:
            self.events.append(body["message"])
            return body
        self._check("create", resource)
        if (resource.plural, body["metadata"]["name"]) in self.taken:
            raise api_error(409, "AlreadyExists", "it exists")
        self.created.append((resource.plural, body["metadata"]["name"]))
        return body | {"metadata": {**body["metadata"], "resourceVersion": "1"}}

    async def delete(self, resource: Resource, name: str, namespace: str, **_: Any) -> None:
        self._check("delete", resource)
        self.deleted.append((resource.plural, name))

    async def patch_status(
        self, resource: Resource, name: str, patch: Object, namespace: str | None = None
    ) -> Object:
        self._check("patch", JOBS)
        _merge(self.status, patch["status"])
        self.show()
        return self.job

    def _check(self, verb: str, resource: Resource) -> None:
        if (verb, resource.plural) in self.refused:
            raise api_error(403, "Forbidden", self.refusal)


def _metadata(name: str, more: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "resourceVersion": "3",
        "labels": JOB_UID | more,
        "ownerReferences": [OWNER],
    }


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Apply a JSON merge patch."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
