"""The reconcile loops that run: one task for each job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""Time for the current iterations at the end of the process."""
RESTART_SECONDS = 5.0


class Loop(Protocol):
    """A reconcile loop."""

    wake: asyncio.Event
    stopping: bool

    async def run(self) -> None:
        """Reconcile until the job is gone or `stopping` is set."""
        ...


class ReconcileLoops:
    """Starts and wakes the loops. Each of them ends itself when its job is gone."""

    def __init__(self, make: Callable[[str], Loop]):
        """`make` returns the loop of a job, by UID."""
        self._make = make
        self._loops: dict[str, tuple[Loop, asyncio.Task[None]]] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._loops)

    def start(self, uid: str) -> None:
        """Start the loop of a job, unless it runs."""
        known = self._loops.get(uid)
        if self._stopping or (known is not None and not known[1].done()):
            return
        loop = self._make(uid)
        task = asyncio.create_task(loop.run(), name=f"job {uid}")
        self._loops[uid] = loop, task
        task.add_done_callback(lambda ended: self._ended(uid, ended))

    def wake(self, uid: str) -> None:
        """Start a reconcile of a job."""
        known = self._loops.get(uid)
        if known is not None:
            known[0].wake.set()

    async def stop(self) -> None:
        """End all loops, after their current iteration if it does not take long."""
        self._stopping = True
        tasks = [task for _, task in self._loops.values()]
        for loop, _ in self._loops.values():
            loop.stopping = True
            loop.wake.set()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        known = self._loops.get(uid)
        if known is not None and known[1] is task:
            del self._loops[uid]
        error: BaseException | None
        if task.cancelled():
            # By stop(), or because what it waited for was cancelled.
            error = None if self._stopping else asyncio.CancelledError("cancelled")
        else:
            error = task.exception()
        if error is not None:
            # A defect that one job reveals concerns this job only.
            log.error("job=%s its reconcile loop ended: %s", uid, error, exc_info=error)
            asyncio.get_running_loop().call_later(RESTART_SECONDS, self.start, uid)
