"""Asks the pods of rank 0 how far they are: directly, or through the API server where it must."""

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
LARGEST = 256 * 1024
AT_ONCE = 32
LONGEST_PAUSE = 60.0


class ProgressPoller:
    """At most one question per job and interval; the answer waits until the job's loop takes it."""

    def __init__(self, cluster: KubeApi, interval: float, wake: Callable[[str], None]):
        self.interval = interval
        self._cluster = cluster
        self._wake = wake
        self._asked: dict[str, float] = {}
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._misses: dict[str, int] = {}
        """Questions in a row without an answer: a pod that has none is asked less and less."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    def take_report(self, job: str) -> Mapping[str, Any] | None:
        """Return the newest answer that was not taken yet."""
        return self._answers.pop(job, None)

    def poll(self, pod: PodRecord) -> float:
        """Ask if it is time to; return the seconds until it is time again."""
        now = time.monotonic()
        pause = min(LONGEST_PAUSE, self.interval * 2.0 ** min(10, self._misses.get(pod.job, 0)))
        left = self._asked.get(pod.job, -1e9) + max(pause, self.interval) - now
        if left > 0:
            return left
        self._asked[pod.job] = now
        task = asyncio.create_task(self._read(pod))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self.interval

    def forget(self, job: str) -> None:
        """Drop what is known of a job that is gone."""
        for known in (self._asked, self._answers, self._misses):
            known.pop(job, None)

    async def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _read(self, pod: PodRecord) -> None:
        async with self._gate:
            body = await self._directly(pod)
            if body is None:
                body = await self._through_the_server(pod)
        answer = read_json(body or b"null")
        self._misses[pod.job] = 0 if isinstance(answer, dict) else self._misses.get(pod.job, 0) + 1
        if isinstance(answer, dict):
            self._answers[pod.job] = answer
            self._wake(pod.job)

    async def _directly(self, pod: PodRecord) -> bytes | None:
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            self._session = aiohttp.ClientSession(timeout=limits, trust_env=False)
        try:
            url = f"http://{host}:{env.HTTP_PORT}{env.STATUS_PATH}"
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    return None
                body = b""
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > LARGEST:
                        return None
                return body
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _through_the_server(self, pod: PodRecord) -> bytes | None:
        try:
            data = await self._cluster.proxy(
                pod.name, pod.namespace, env.HTTP_PORT, env.STATUS_PATH
            )
        except ApiError as error:
            log.debug("job=%s progress is out of reach: %s", pod.job, error)
            return None
        return data if len(data) <= LARGEST else None
