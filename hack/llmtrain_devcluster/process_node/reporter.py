"""Write the status of a pod to the API server if it has changed."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.kubelet.pod_status import UNREACHABLE, remove_pod, write_status
from llmtrain_devcluster.kubelet.statuses import PodView, now, without_times

Object = dict[str, Any]

REMOVE_RETRY_SECONDS = 5.0


class Reporter:
    """Writes the newest status of one pod; intermediate statuses are skipped."""

    def __init__(self, api: Api, pod: Object):
        self._api = api
        self._meta = pod["metadata"]
        self._node = pod["spec"].get("nodeName", "")
        self._next: PodView | None = None
        self._written = ""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._written_events: set[str] = set()
        self._writer = asyncio.create_task(self._write_all())
        self._events: set[asyncio.Task[None]] = set()

    def report(self, view: PodView) -> None:
        """Schedule a write of this status."""
        self._next = view
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until the newest status is written."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop writing."""
        tasks = (self._writer, *self._events)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def remove(self) -> None:
        """Remove the pod object, the last action of a kubelet; retry until it succeeds."""
        while not await remove_pod(self._api, self._meta):
            await asyncio.sleep(REMOVE_RETRY_SECONDS)

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            view = self._next
            if view is not None:
                await self._write(view)
            if not self._wake.is_set():
                self._idle.set()

    async def _write(self, view: PodView) -> None:
        status = view.to_json()
        text = without_times(status)
        if text == self._written:
            return
        if await write_status(self._api, self._meta, status):
            self._written = text

    def event(self, reason: str, message: str) -> None:
        """Write a warning event once; retry it on the next call if the write failed."""
        if message not in self._written_events:
            self._written_events.add(message)
            task = asyncio.create_task(self._write_event(reason, message))
            self._events.add(task)
            task.add_done_callback(self._events.discard)

    async def _write_event(self, reason: str, message: str) -> None:
        reference = {"kind": "Pod", "apiVersion": "v1"}
        body = {
            "metadata": {"generateName": f"{self._meta['name'][:50]}."},
            "involvedObject": reference
            | {key: self._meta[key] for key in ("name", "namespace", "uid")},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "process-node", "host": self._node},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        try:
            await self._api.create("events", body, self._meta["namespace"])
        except (ApiStatusError, *UNREACHABLE) as error:
            self._written_events.discard(message)
            pod = f"{self._meta['namespace']}/{self._meta['name']}"
            print(f"cannot write an event of pod {pod}: {error!r}", file=sys.stderr, flush=True)
