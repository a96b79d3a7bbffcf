"""Go's caches, which all builds share while one of them runs.

The programs of Kubernetes have most of their packages in common, and all need the standard library,
so a build compiles only what no build before it did. Go locks its caches, so builds may run at the
same time.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain_devcluster.paths import cache_root


def go_caches() -> dict[str, str]:
    """Return the environment variables that name the caches."""
    folder = cache_root() / "go"
    return {"GOCACHE": str(folder / "build"), "GOMODCACHE": str(folder / "mod")}


@contextmanager
def keep_go_caches() -> Iterator[None]:
    """Keep the caches for the builds of a block, and for those of other processes meanwhile.

    The last block that ends without an error removes them: they take gigabytes. They stay after an
    error or an interrupt, so that the next build continues from them.
    """
    folder = cache_root() / "go"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "use.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # Another block uses them.
        for path in go_caches().values():
            shutil.rmtree(path, ignore_errors=True)
