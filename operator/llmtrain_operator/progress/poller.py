"""Poll the training progress from the pods of rank 0, directly or through the API server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from llmtrain_core.api import env
from llmtrain_operator.cache.records import PodRecord, read_json
from llmtrain_operator.errors import ApiError
from llmtrain_operator.kube.api import KubeApi

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
MAX_RESPONSE_BYTES = 256 * 1024
MAX_CONCURRENT = 32
MAX_INTERVAL_SECONDS = 60.0


class ProgressPoller:
    """At most one request per job and interval. A report is kept until its reconciler takes it."""

    def __init__(self, cluster: KubeApi, interval: float, wake: Callable[[str], None]):
        self.interval = interval
        self._cluster = cluster
        self._wake = wake
        self._polled_at: dict[str, float] = {}
        self._reports: dict[str, Mapping[str, Any]] = {}
        self._misses: dict[str, int] = {}
        """Consecutive requests without a report, by job. They increase the interval."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(MAX_CONCURRENT)
        self._session: aiohttp.ClientSession | None = None

    def take_report(self, job: str) -> Mapping[str, Any] | None:
        """Return the newest report that was not taken yet."""
        return self._reports.pop(job, None)

    def poll(self, pod: PodRecord) -> float:
        """Start a request if the interval has passed. Return the seconds until the next one."""
        now = time.monotonic()
        interval = min(
            MAX_INTERVAL_SECONDS, self.interval * 2.0 ** min(10, self._misses.get(pod.job, 0))
        )
        left = self._polled_at.get(pod.job, -1e9) + max(interval, self.interval) - now
        if left > 0:
            return left
        self._polled_at[pod.job] = now
        task = asyncio.create_task(self._read(pod))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self.interval

    def forget(self, job: str) -> None:
        """Drop the state of a job that does not exist any more."""
        for known in (self._polled_at, self._reports, self._misses):
            known.pop(job, None)

    async def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _read(self, pod: PodRecord) -> None:
        async with self._gate:
            body = await self._request_pod(pod)
            if body is None:
                body = await self._request_through_server(pod)
        report = read_json(body or b"null")
        self._misses[pod.job] = 0 if isinstance(report, dict) else self._misses.get(pod.job, 0) + 1
        if isinstance(report, dict):
            self._reports[pod.job] = report
            self._wake(pod.job)

    async def _request_pod(self, pod: PodRecord) -> bytes | None:
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            self._session = aiohttp.ClientSession(timeout=limits, trust_env=False)
        try:
            url = f"http://{host}:{env.HTTP_PORT}{env.STATUS_PATH}"
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    return None
                body = b""
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_RESPONSE_BYTES:
                        return None
                return body
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _request_through_server(self, pod: PodRecord) -> bytes | None:
        try:
            data = await self._cluster.proxy(
                pod.name, pod.namespace, env.HTTP_PORT, env.STATUS_PATH
            )
        except ApiError as error:
            log.debug("job=%s progress is unavailable: %s", pod.job, error)
            return None
        return data if len(data) <= MAX_RESPONSE_BYTES else None
