"""Poll the training progress from the pods of rank 0: at their address, or by the API server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from llmtrain_core.api import env
from llmtrain_core.api.untrusted import read_json
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.errors import ApiError
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.bounded_http import new_session, send
from llmtrain_operator.kube.namespace_limits import NamespaceGate

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
MAX_RESPONSE_BYTES = 256 * 1024
MAX_CONCURRENT = 32
MAX_CONCURRENT_PER_NAMESPACE = 8
"""Pods that do not answer delay the requests to pods of their own namespace only."""
MAX_INTERVAL_SECONDS = 60.0


class ProgressPoller:
    """At most one request per job at a time, and per interval.

    A report is kept until its reconciler takes it.
    """

    def __init__(self, proxy: KubeApi | None, interval: float, wake: Callable[[str], None]):
        """`proxy` reads from pods whose address does not answer; None if this is not allowed."""
        self.interval = interval
        self._proxy = proxy
        self._wake = wake
        self._polled_at: dict[str, float] = {}
        self._reports: dict[str, Mapping[str, Any]] = {}
        self._misses: dict[str, int] = {}
        """Consecutive requests without a report, by job. They increase the interval."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """Requests in progress, by job. They wait while other pods of their namespace are slow."""
        self._gate = asyncio.Semaphore(MAX_CONCURRENT)
        self._namespace_gate = NamespaceGate(MAX_CONCURRENT_PER_NAMESPACE)
        self._session: aiohttp.ClientSession | None = None

    def take_report(self, job: str) -> Mapping[str, Any] | None:
        """Return the newest report that was not taken yet."""
        return self._reports.pop(job, None)

    def poll(self, pod: PodRecord) -> float:
        """Start a request if the interval has passed. Return the seconds until the next one."""
        if pod.job in self._tasks:
            return self.interval
        now = time.monotonic()
        interval = min(
            MAX_INTERVAL_SECONDS, self.interval * 2.0 ** min(10, self._misses.get(pod.job, 0))
        )
        left = self._polled_at.get(pod.job, -1e9) + max(interval, self.interval) - now
        if left > 0:
            return left
        self._polled_at[pod.job] = now
        task = asyncio.create_task(self._read(pod))
        self._tasks[pod.job] = task
        task.add_done_callback(lambda _: self._tasks.pop(pod.job, None))
        return self.interval

    def forget(self, job: str) -> None:
        """Drop the state of a job that does not exist any more."""
        if job in self._tasks:
            self._tasks[job].cancel()
        for known in (self._polled_at, self._reports, self._misses):
            known.pop(job, None)

    async def close(self) -> None:
        """Close the connections."""
        for task in self._tasks.values():
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _read(self, pod: PodRecord) -> None:
        async with self._namespace_gate.enter(pod.namespace), self._gate:
            body = await self._request_pod(pod)
            if body is None and self._proxy is not None:
                body = await self._request_through_server(self._proxy, pod)
        report = read_json(body or b"null")
        self._misses[pod.job] = 0 if isinstance(report, dict) else self._misses.get(pod.job, 0) + 1
        if isinstance(report, dict):
            self._reports[pod.job] = report
            self._wake(pod.job)

    async def _request_pod(self, pod: PodRecord) -> bytes | None:
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        if self._session is None:
            self._session = new_session()
        try:
            answer = await send(
                self._session,
                "GET",
                f"http://{host}:{env.HTTP_PORT}{env.STATUS_PATH}",
                aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                MAX_RESPONSE_BYTES,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("job=%s progress is unavailable: %s", pod.job, error)
            return None
        return answer.body if answer.status == 200 else None

    async def _request_through_server(self, proxy: KubeApi, pod: PodRecord) -> bytes | None:
        try:
            return await proxy.proxy(
                pod.name, pod.namespace, env.HTTP_PORT, env.STATUS_PATH, MAX_RESPONSE_BYTES
            )
        except ApiError as error:
            log.debug("job=%s progress is unavailable: %s", pod.job, error)
            return None
