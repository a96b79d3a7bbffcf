"""Leader election by a Lease: at most one operator writes.

The leader may write until `renew_deadline` after it *sent* its last successful renewal. A contender
takes over no sooner than `duration` after it *observed* the last one. Both use their own monotonic
clock, which also runs while the process is stopped, so clock skew between machines has no effect.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from llmtrain_operator.config import LeaseTiming
from llmtrain_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    LeaseLostError,
    NotFoundError,
)
from llmtrain_operator.kube.api import KubeApi, Object
from llmtrain_operator.kube.resources import LEASES

log = logging.getLogger(__name__)


def boot_clock() -> float:
    """Return monotonic seconds, including time in suspend where the system supports it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaderElector:
    """One candidate for one Lease object."""

    def __init__(
        self,
        cluster: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        timing: LeaseTiming,
        metadata: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ):
        """`metadata` has labels and annotations of a Lease that this candidate creates."""
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing
        self._valid_until = 0.0
        self._observed_record: tuple[str, str] = ("", "")
        self._observed_at = 0.0
        self._metadata = metadata

    @property
    def is_leader(self) -> bool:
        """Whether this process may write now."""
        return boot_clock() < self._valid_until

    def fence(self) -> None:
        """Raise LeaseLostError unless this process may write now."""
        if not self.is_leader:
            raise LeaseLostError("this process does not hold the lease")

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        while not await self._try_acquire_or_renew():
            await asyncio.sleep(self._timing.retry_period * random.uniform(1.0, 1.2))
        log.info("lease=%s/%s acquired by=%s", self._namespace, self._name, self._identity)

    async def renew_until_lost(self, on_lost: Callable[[], None]) -> None:
        """Renew until the lease is lost, then call `on_lost`, which should end the process."""
        while True:
            await asyncio.sleep(self._timing.retry_period * random.uniform(0.8, 1.0))
            if self.is_leader:
                await self._try_acquire_or_renew()
            if not self.is_leader:
                log.error("lease=%s/%s lost by=%s", self._namespace, self._name, self._identity)
                on_lost()
                return

    async def release(self) -> None:
        """Release the lease on a clean exit, so that the next leader need not wait."""
        if not self.is_leader:
            return
        self._valid_until = 0.0
        try:
            found = await self._cluster.get(LEASES, self._name, self._namespace)
            if found["spec"].get("holderIdentity") == self._identity:
                found["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                found["spec"]["renewTime"] = _micro_time()
                await self._cluster.replace(LEASES, self._name, found, self._namespace)
        except ApiError as error:
            log.warning("lease=%s/%s not released: %s", self._namespace, self._name, error)

    async def _try_acquire_or_renew(self) -> bool:
        """Acquire or renew the lease. Return False if it is held or the server fails."""
        sent = boot_clock()
        try:
            async with asyncio.timeout(self._timing.renew_deadline / 2):
                taken = await self._write_lease()
        except (ConflictError, AlreadyExistsError):
            taken = False
        except (ApiError, TimeoutError) as error:
            log.warning("lease=%s/%s: %s", self._namespace, self._name, error)
            return False
        self._valid_until = sent + self._timing.renew_deadline if taken else 0.0
        return taken

    async def _write_lease(self) -> bool:
        try:
            found = await self._cluster.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            body = {
                "apiVersion": LEASES.api_version,
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace, **self._metadata},
                "spec": self._spec({}),
            }
            await self._cluster.create(LEASES, body, self._namespace)
            return True
        spec = found.get("spec") or {}
        if spec.get("holderIdentity") not in ("", None, self._identity):
            record = (str(spec.get("holderIdentity")), str(spec.get("renewTime")))
            if record != self._observed_record:
                self._observed_record, self._observed_at = record, boot_clock()
            held_for = max(float(spec.get("leaseDurationSeconds") or 0), self._timing.duration)
            if boot_clock() < self._observed_at + held_for:
                return False
        found["spec"] = self._spec(spec)
        await self._cluster.replace(LEASES, self._name, found, self._namespace)
        return True

    def _spec(self, before: Object) -> Object:
        ours = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._timing.duration)),
            "acquireTime": before.get("acquireTime") if ours else _micro_time(),
            "renewTime": _micro_time(),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not ours),
        }


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
