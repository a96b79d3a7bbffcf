"""Trying again what failed only for a moment, a bounded number of times."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries: five tries in 7.5 seconds, then the launcher's restart is the next."""

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
"""What a shared file system, or the driver of a store, says when it is not there for a moment."""

_CLIENT = "HTTPClientError"
"""botocore's base of connections that broke or were never made; no OSError."""

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Tell whether reading may work the next time although nothing was changed."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return any(kind.__name__ == _CLIENT for kind in type(error).__mro__)


def retry_transient(read: Callable[[], T]) -> T:
    """Return what `read` returns; tries again after errors that may pass, then raises the last."""
    for wait in WAITS:
        try:
            return read()
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("reading a checkpoint failed, trying again in %g s: %r", wait, error)
            time.sleep(wait)
    return read()
