"""Which checkpoints stay: the newest `keep`, and whatever someone is reading.

Readers and the purge may be different jobs on different machines, and stores have no locks. So each
side leaves a file before it looks for the other's: a reader its lease, then it looks whether the
folder is being purged; the purge its note, then it looks for leases. Whatever the order, at least
one of them sees the other; where both do, both give way.
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
"""A lease older than this belonged to a reader that was killed."""

log = logging.getLogger(__name__)


@contextmanager
def read_lease(folder: Folder) -> Iterator[bool]:
    """Keep a checkpoint from being purged while it is read; yields whether it is there.

    A reader that may not write there reads without a lease: then only `keep` protects it.
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
    """Delete what is older than the `keep` newest complete checkpoints up to step `saved`.

    The one just saved is never deleted, nor one of a later step: it may be damaged, and it is not
    this run's to judge. Incomplete ones go too; they were left by a rank that was killed.
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
    """Return when a lease was taken; one that cannot be read was just given back."""
    try:
        return float(lease.read_text())
    except (OSError, ValueError):
        return 0.0
