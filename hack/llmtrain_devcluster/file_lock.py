"""A lock between processes that says what it waits for."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPORT_EVERY_SECONDS = 10.0


@contextmanager
def file_lock(
    path: Path,
    seconds: float,
    holder: str,
    progress: Callable[[str], None],
    error: type[Exception],
) -> Iterator[None]:
    """Lock a file; the kernel frees the lock of a process that has ended.

    `holder` is who else may hold the lock, in messages. Raises `error` after `seconds`.
    """
    with path.open("w") as lock:
        started = reported = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - started >= seconds:
                    raise error(
                        f"{holder} holds {path} for too long: stop it and run again"
                    ) from None
                if now - reported >= REPORT_EVERY_SECONDS:
                    reported = now
                    progress(f"waiting for {holder}, {now - started:.0f} s")
                time.sleep(0.5)
        yield
