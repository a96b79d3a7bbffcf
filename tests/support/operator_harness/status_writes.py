"""Count the writes of the status of jobs by what they change. No code of the operator is used."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.kubelet.pod_watch import follow
from tests.support.operator_harness.harness import JOBS, status_of


def what_changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what a write of a status changed: the phase, a condition, or only these fields."""
    if before.get("phase") != after.get("phase"):
        return f"phase {after.get('phase')}"
    if _states(before) != _states(after):
        return "a condition"
    keys = before.keys() | after.keys()
    changed = (key for key in keys - {"revision"} if before.get(key) != after.get(key))
    return f"only {', '.join(sorted(changed))}"


def _states(status: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", ())]


class StatusWrites:
    """Counts the writes of the statuses in a namespace, from the moment it is made."""

    def __init__(self, api: Api, namespace: str):
        self._api = api
        self._namespace = namespace
        self._known: dict[str, dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> StatusWrites:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        async for kind, job in follow(self._api, JOBS, f"metadata.namespace={self._namespace}"):
            uid, after = job["metadata"]["uid"], status_of(job)
            before, self._known[uid] = self._known.get(uid, {}), after
            if kind == "MODIFIED" and before != after:
                self.counts[what_changed(before, after)] += 1
