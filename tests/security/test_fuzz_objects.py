"""Thousands of random hostile objects: no crash, no tenant that is stuck, no growth of memory.

`make fuzz-objects` sends 10,000; the tests have a fixed sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmtrain_devcluster.api import ApiStatusError, resource_path
from tests.support.operator_harness.harness import JOBS, PATIENT_LEASE
from tests.support.security import hostile
from tests.support.security.hostile_objects import Hostile, HostileObjects
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import Tenant, Tenants

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

OBJECTS = int(os.environ.get("LLMTRAIN_FUZZ_OBJECTS", "90"))
SEED = int(os.environ.get("LLMTRAIN_FUZZ_SEED", "0"))
ALIVE = 60
"""Objects that exist at the same time; older ones are deleted."""
CONCURRENT = 6
GROWTH_MIB = 64
"""Growth of memory after the first tenth of the objects. Parsed JSON leaves holes in the heap."""


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """The API server itself may be busy for long with hostile objects."""
    return PATIENT_LEASE


class Storm:
    """Sends hostile objects of one tenant, and deletes them again."""

    def __init__(self, tenants: Tenants, seed: int):
        self.sent = self.stored = 0
        self._tenants = tenants
        self._uids: deque[str] = deque(maxlen=20)
        self._source = HostileObjects(seed, lambda: [*self._uids])
        self._alive: deque[Hostile] = deque()

    async def send(self, count: int) -> None:
        """Send objects, some at a time."""
        gate = asyncio.Semaphore(CONCURRENT)

        async def one() -> None:
            async with gate:
                await self._send_next()

        await asyncio.gather(*(one() for _ in range(count)))

    async def _send_next(self) -> None:
        found = self._source.next(self._tenants.mallory.namespace)
        self.sent += 1
        api, namespace = self._client(found)
        # The API server itself may take very long to merge managed fields.
        with contextlib.suppress(ApiStatusError, TimeoutError):
            made = await hostile.create(api, found.resource, found.body, namespace)
            self._alive.append(found)
            self.stored += 1
            if found.resource == JOBS:
                self._uids.append(made["metadata"]["uid"])
            for patch in found.patches:
                await hostile.patch(api, found.resource, found.name, patch, namespace)
            if found.status:
                # Kubelets write what containers say.
                await self._write_status(found, namespace)
        while len(self._alive) > ALIVE:
            await self._delete(self._alive.popleft())

    def _client(self, found: Hostile) -> tuple[hostile.Api, str | None]:
        if found.resource == "nodes":
            return self._tenants.admin, None
        return self._tenants.mallory.api, self._tenants.mallory.namespace

    async def _write_status(self, found: Hostile, namespace: str | None) -> None:
        path = resource_path(found.resource, namespace, found.name) + "/status"
        headers = {"Content-Type": "application/merge-patch+json"}
        await self._tenants.admin.send("PATCH", path, found.status, headers)

    async def _delete(self, found: Hostile) -> None:
        api, namespace = self._client(found)
        path = resource_path(found.resource, namespace, found.name)
        with contextlib.suppress(ApiStatusError, TimeoutError):
            await api.send("DELETE", path, b'{"gracePeriodSeconds":0}')
            # Their own finalizers are the tenant's own business.
            body = b'{"metadata":{"finalizers":null}}'
            await hostile.patch(api, found.resource, found.name, body, namespace)

    async def end(self) -> None:
        """Delete everything that is left."""
        while self._alive:
            await self._delete(self._alive.popleft())


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def none_left(tenant: Tenant) -> None:
    async with asyncio.timeout(120):
        while await hostile.names(tenant.api, JOBS, tenant.namespace):
            await asyncio.sleep(0.5)


async def test_hostile_objects_stop_nobody(tenants: Tenants, bystanders: Bystanders) -> None:
    storm = Storm(tenants, SEED)
    try:
        await storm.send(OBJECTS // 10)
        memory = resident_mib(bystanders.operator.pid)
        await storm.send(OBJECTS - OBJECTS // 10)
        assert storm.stored > OBJECTS / 3, "most objects are refused: this tests nothing"
        await bystanders.are_unharmed(f"{OBJECTS} random hostile objects")
    finally:
        await storm.end()
    await none_left(tenants.mallory)
    growth = resident_mib(bystanders.operator.pid) - memory
    print(
        f"\n{storm.stored} of {storm.sent} objects stored, memory {memory:.0f} MiB, growth"
        f" {growth:.0f} MiB, peak {bystanders.peak_mib():.0f} MiB; {bystanders.starts}"
    )
    assert growth < GROWTH_MIB
    log = bystanders.operator.log.read_text(errors="replace")
    assert "reaction to the change failed" not in log
    assert "scheduler cycle failed" not in log
    assert "reconcile failed" not in log.replace("reconcile failed, next attempt", "")
