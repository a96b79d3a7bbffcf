"""Work that blocks, done on a thread that is gone afterwards.

The launcher forks ranks, and forking beside threads can copy a held lock into the child; so it
keeps no pool of threads, and asyncio's helpers that do (`getaddrinfo`, `to_thread`) are not used.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.02

T = TypeVar("T")


async def in_a_thread(work: Callable[[], T], name: str) -> T:
    """Return what `work` returns, or raise what it raises; its thread has ended then."""
    results: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(POLL_SECONDS)
    thread.join()
    if failed:
        raise failed[0]
    return results[0]
