"""Read Xids from the kernel log, where a pod may: /dev/kmsg of a privileged pod."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from llmtrain_core.node_health.xid import Xid, read_kernel_log

KERNEL_LOG = Path("/dev/kmsg")
_RECORD_BYTES = 8192
"""Largest record of /dev/kmsg."""
_MOST_RECORDS = 10_000
"""Records of one read."""


class KernelLog:
    """The records that follow the creation of this object. Raises OSError if it cannot be read."""

    def __init__(self, path: Path = KERNEL_LOG) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a pipe has no position
            os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> list[Xid]:
        """Return the Xids since the last call. Each read of the file returns one record."""
        found: list[Xid] = []
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(self._file, _RECORD_BYTES)
            except BrokenPipeError:
                continue  # records were overwritten before they were read
            except OSError:
                break
            if not record:
                break
            found += read_kernel_log(record.decode(errors="replace"))
        return found


def open_kernel_log(path: Path = KERNEL_LOG) -> list[Callable[[], list[Xid]]]:
    """Return the reader of the kernel log, or nothing if this pod may not read it."""
    try:
        return [KernelLog(path).read]
    except OSError:
        return []
