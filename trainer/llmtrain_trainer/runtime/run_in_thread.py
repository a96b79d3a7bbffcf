"""Run a blocking call without blocking the event loop, on a thread that ends with the call.

The launcher forks ranks, and a fork while other threads run can copy a held lock into the child. So
the launcher has no thread pool, and uses no asyncio function that needs one (`getaddrinfo`,
`to_thread`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.02

T = TypeVar("T")


async def run_in_thread(call: Callable[[], T], name: str) -> T:
    """Return the result of `call`, or raise its exception, after its thread has ended."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(POLL_SECONDS)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
