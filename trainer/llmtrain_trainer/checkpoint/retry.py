"""Retry reads that failed temporarily, a bounded number of times."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries: five tries in 7.5 seconds. After that the launcher restarts the ranks."""

_PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.EREMOTEIO,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
    }
)
"""Errors of a shared file system, or of the driver of a store, that is temporarily not
available."""

_CLIENT = "HTTPClientError"
"""botocore's base class of connection errors, which are not OSErrors."""

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Return True if the same read may work the next time."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return any(kind.__name__ == _CLIENT for kind in type(error).__mro__)


def retry_transient(read: Callable[[], T]) -> T:
    """Return the result of `read`. Retry after transient errors and raise the last one."""
    for wait in WAITS:
        try:
            return read()
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("reading a checkpoint failed, trying again in %g s: %r", wait, error)
            time.sleep(wait)
    return read()
