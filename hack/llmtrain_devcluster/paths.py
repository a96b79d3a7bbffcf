"""The folders of the development cluster: its code, a lasting cache and temporary folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PACKAGE_PARENT = Path(__file__).resolve().parents[1]
"""The folder to import this package from."""
STATE_BYTES = 2 << 30


def cache_root() -> Path:
    """Return the cache folder, for what is expensive to build (binaries, a Go toolchain)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "llmtrain"


def clusters_folder() -> Path:
    """Return the folder of the state files of detached clusters, one JSON file per cluster."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) / "llmtrain" if state else cache_root()) / "clusters"


def scratch_base() -> Path | None:
    """Return a folder in memory for a cluster's state, so that etcd does not wait for the disk.

    Return None, which means the default temporary folder, if there is no such folder.
    """
    memory = Path("/dev/shm")
    try:
        roomy = shutil.disk_usage(memory).free >= STATE_BYTES
    except OSError:
        return None
    return memory if roomy and os.access(memory, os.W_OK) else None
