"""Entries of a folder of the cache, named by a hash: those that were not used for long go."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

KEPT = 6
_HASHED = re.compile(r"[0-9a-f]{16}(\.\w+)?")


def mark_used(entry: Path) -> Path:
    """Return the entry; remove all but the last ones that were used beside it."""
    os.utime(entry)
    entries = [path for path in entry.parent.iterdir() if _HASHED.fullmatch(path.name)]
    entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in entries[KEPT:]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)
    return entry
