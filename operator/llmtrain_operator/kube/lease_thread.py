"""Hold the lease in a thread with an event loop of its own.

The main event loop may be busy for seconds, for example with the jobs of one tenant. A renewal that
waits for it would lose the lease and end the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.leader_election import LeaderElector

T = TypeVar("T")


class LeaseThread:
    """Acquires, renews and releases a lease. Only this thread uses the client of the elector."""

    def __init__(
        self,
        elector: LeaderElector,
        client: KubeClient,
        on_lost: Callable[[], None],
        on_ended: Callable[[str], None],
    ):
        """Both callbacks should end the process. `on_ended` is for errors in the renewal."""
        self._elector = elector
        self._client = client
        self._on_lost = on_lost
        self._on_ended = on_ended
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lease", daemon=True)
        self._renewal: Future[None] | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def acquire(self) -> None:
        """Wait until this process leads, then renew the lease until `stop`."""
        await self._run(self._elector.acquire())
        self._renewal = asyncio.run_coroutine_threadsafe(
            self._elector.renew_until_lost(self._on_lost), self._loop
        )
        self._renewal.add_done_callback(self._renewal_ended)

    async def stop(self) -> None:
        """Release the lease if this process holds it, and end the thread."""
        if self._renewal is not None:
            self._renewal.cancel()
            await self._run(self._elector.release())
        await self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _renewal_ended(self, renewal: Future[None]) -> None:
        try:
            renewal.result()
        except CancelledError:
            return
        except Exception:
            self._on_ended("lease renewal")
