"""Retention: keep the latest `keep` checkpoints and every checkpoint that is being read.

Readers and the purge may be different jobs on different machines, and stores have no locks. So each
side writes a file before it looks for the file of the other side. A reader writes its lease and
then checks for a purge marker. The purge writes its marker and then checks for leases. In any
order, at least one side sees the other. If both do, both give up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from llmtrain_trainer.checkpoint.paths import (
    PURGE_MARKER,
    Folder,
    complete_steps,
    delete_checkpoint,
    is_complete,
    list_dir,
    list_steps,
    step_folder,
)

LEASE = ".reading-"
LEASE_SECONDS = 3600.0
"""A lease older than this belongs to a reader that was killed."""

log = logging.getLogger(__name__)


@contextmanager
def read_lease(folder: Folder) -> Iterator[bool]:
    """Protect a checkpoint from the purge while it is read. Yield True if it is complete.

    A reader without write permission reads without a lease. Then only `keep` protects it.
    """
    lease = folder / f"{LEASE}{uuid4().hex}"
    with suppress(PermissionError, FileNotFoundError):
        lease.write_text(str(time.time()))
    try:
        yield is_complete(folder)
    finally:
        with suppress(OSError):
            lease.unlink(missing_ok=True)


def purge(root: Folder, keep: int, saved: int) -> None:
    """Delete checkpoints older than the latest `keep` complete ones up to step `saved`.

    The checkpoint just saved and those of later steps are never deleted: a later one may be
    corrupt, but this run cannot decide that. Incomplete ones of killed ranks are deleted, too.
    """
    kept = {step for step in complete_steps(root) if step <= saved}
    kept = set(sorted(kept)[-keep:]) | {saved}
    for step in list_steps(root):
        if step < saved and step not in kept:
            _delete(step_folder(root, step))


def _delete(folder: Folder) -> None:
    note = folder / PURGE_MARKER
    try:
        note.write_text("")
    except FileNotFoundError:
        return  # another purge was first
    if _is_read(folder):
        note.unlink(missing_ok=True)
        log.info("%s is being read: it is deleted after the next save", folder)
        return
    delete_checkpoint(folder)


def _is_read(folder: Folder) -> bool:
    return any(
        path.name.startswith(LEASE) and time.time() - _written(path) < LEASE_SECONDS
        for path in list_dir(folder)
    )


def _written(lease: Folder) -> float:
    """Return when a lease was taken. A lease that cannot be read has just been released."""
    try:
        return float(lease.read_text())
    except (OSError, ValueError):
        return 0.0
