"""Where the development cluster keeps things: a cache that outlives it and folders that do not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

STATE_BYTES = 2 << 30


def cache_root() -> Path:
    """Return the folder for what is expensive to make again (binaries, a Go toolchain)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "llmtrain"


def clusters_folder() -> Path:
    """Return the folder of the state files of detached clusters, one JSON file per cluster."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) / "llmtrain" if state else cache_root()) / "clusters"


def scratch_base() -> Path | None:
    """Prefer memory for a cluster's state: etcd waits for the disk otherwise.

    None means the default temporary folder.
    """
    memory = Path("/dev/shm")
    try:
        roomy = shutil.disk_usage(memory).free >= STATE_BYTES
    except OSError:
        return None
    return memory if roomy and os.access(memory, os.W_OK) else None
