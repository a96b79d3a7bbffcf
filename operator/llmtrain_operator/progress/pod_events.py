"""Why pods do not start, from their Events: a volume, the network, or a long image pull.

The state of a container says only `ContainerCreating` then. Events are listed for pods that wait
for some seconds, a few pods of a job at a time.

The API server has no watch cache of Events: for one pod it reads all Events of the namespace from
etcd. So the requests of all jobs are made one after the other, with pauses in proportion to the
time that they take.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.errors import ApiError
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.resources import EVENTS

log = logging.getLogger(__name__)

PERIOD_SECONDS = 10.0
"""Per job, the time from one look at its pods to the next."""
PODS_AT_ONCE = 3
PAUSE_RATIO = 49.0
"""Pause after a request, over the time that it took: requests take 2 % of the time."""
MAX_PAUSE_SECONDS = 10.0
"""Where one takes longer, what a pod waits for is worth more."""
MAX_EVENTS = 100
"""Events that are read of a pod."""
TEXT_LENGTH = 400
_PULLING = "Pulling"


@dataclass(frozen=True, slots=True)
class _Finding:
    at: float
    """Monotonic time of the request."""
    text: str = ""


class PodEvents:
    """What the Events of pods say, by job and UID of the pod."""

    def __init__(
        self,
        cluster: KubeApi,
        wake: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """`wake` starts a reconcile of a job for whose pods something new was found."""
        self._cluster = cluster
        self._wake = wake
        self._sleep = sleep
        self._found: dict[str, dict[str, _Finding]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, tuple[float, Sequence[PodRecord]]] = {}
        """By job: when it asked last, and about which pods."""
        self._turn = asyncio.Lock()
        self._next_request = -1e9
        """Monotonic time before which no request is made."""

    def findings(self, job: str) -> Mapping[str, str]:
        """Return why pods of a job do not start, by UID of the pod, as far as it is known."""
        return {uid: found.text for uid, found in self._found.get(job, {}).items() if found.text}

    def look_up(self, job: str, pods: Sequence[PodRecord]) -> float:
        """List the Events of some of these pods. Return the seconds until the next time."""
        known = self._found.setdefault(job, {})
        now = time.monotonic()
        self._waiting[job] = (now, tuple(pods))
        latest = max((found.at for found in known.values()), default=-1e9)
        left = latest + PERIOD_SECONDS - now
        if job in self._tasks or left > 0:
            return PERIOD_SECONDS if job in self._tasks else left
        uids = {pod.uid for pod in pods}
        for uid in known.keys() - uids:
            del known[uid]
        task = asyncio.create_task(self._read_some(job))
        self._tasks[job] = task
        task.add_done_callback(lambda _: self._tasks.pop(job, None))
        return PERIOD_SECONDS

    def forget(self, job: str) -> None:
        """Drop what is known of the pods of a job."""
        if job in self._tasks:
            self._tasks[job].cancel()
        self._found.pop(job, None)
        self._waiting.pop(job, None)

    def close(self) -> None:
        """Cancel the requests."""
        for task in self._tasks.values():
            task.cancel()

    async def _read_some(self, job: str) -> None:
        """Read the Events of some pods, those first that were read longest ago."""
        read = set[str]()
        for _ in range(PODS_AT_ONCE):
            async with self._turn:
                if (pause := self._next_request - time.monotonic()) > 0:
                    await self._sleep(pause)
                start, known = time.monotonic(), self._found.setdefault(job, {})
                asked_at, pods = self._waiting.get(job, (start, ()))
                unread = [pod for pod in pods if pod.uid not in read]
                if not unread or start > asked_at + 2 * PERIOD_SECONDS:
                    return  # the job waits no longer
                pod = min(unread, key=lambda pod: known[pod.uid].at if pod.uid in known else -1e9)
                before, text = self.findings(job), await self._read(pod)
                end = time.monotonic()
                self._next_request = end + min(PAUSE_RATIO * (end - start), MAX_PAUSE_SECONDS)
            read.add(pod.uid)
            known[pod.uid] = _Finding(end, text)
            if self.findings(job) != before:
                self._wake(job)

    async def _read(self, pod: PodRecord) -> str:
        fields = f"involvedObject.uid={pod.uid}"
        try:
            page = await self._cluster.list_page(
                EVENTS, pod.namespace, fields=fields, limit=MAX_EVENTS
            )
        except ApiError as error:
            log.debug("job=%s events of pod %s are unavailable: %s", pod.job, pod.name, error)
            return ""
        return delay_of([item.object for item in page.items])


def delay_of(events: Iterable[Mapping[str, Any]]) -> str:
    """Return what the newest Event says that explains why a pod has not started; else empty.

    These are warnings, and the start of an image pull that has not ended.
    """
    newest = sorted(events, key=_time)
    for event in reversed(newest):
        reason = str(event.get("reason") or "")
        if event.get("type") == "Warning" or reason == _PULLING:
            return clean_text(f"{reason}: {event.get('message') or ''}", TEXT_LENGTH)
        if reason == "Pulled":
            return ""
    return ""


def _time(event: Mapping[str, Any]) -> str:
    """Return the time of an Event, as a text that sorts by time."""
    series, metadata = event.get("series") or {}, event.get("metadata") or {}
    found = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or metadata.get("creationTimestamp")
    )
    return str(found or "")[:19]
