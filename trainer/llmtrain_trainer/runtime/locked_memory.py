"""How much memory the ranks may lock. RDMA registers memory, which locks it.

The kernel refuses the registration beyond `RLIMIT_MEMLOCK`, unless the process has the capability
`CAP_IPC_LOCK` (getrlimit(2), `ib_umem_get` in drivers/infiniband/core/umem.c). A container that
does not run as root does not get the capability, and inherits the limit of the container runtime,
often 8 MiB.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

MEMLOCK_TOO_LOW = "MemlockTooLow"
"""Reason of the failure, and of the fallback to TCP."""
MIN_LOCKED_BYTES = 1 << 30
"""NCCL registers some megabytes for each channel and peer, so the need grows with the gang. A lower
limit is a default of an operating system (64 KiB, 8 MiB); a higher one was set for RDMA."""
REMEDY = (
    "set LimitMEMLOCK=infinity for the container runtime of the nodes; or, where NRI has the plugin"
    " ulimit-adjuster, ulimits.noderesource.dev/container.trainer in workers.podAnnotations; or"
    " network.profile: tcp, which is slower"
)
"""What helps, the best first."""
_IPC_LOCK = 14
"""Number of the capability (linux/capability.h)."""


def locked_memory_limit(status: Path = Path("/proc/self/status")) -> int | None:
    """Return how many bytes this process may lock; None if there is no limit."""
    if _has_capability(status.read_text(), _IPC_LOCK):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def lack_of_locked_memory(limit: int | None) -> str:
    """Return why a limit in bytes is too low for RDMA; empty if it is not."""
    if limit is None or limit >= MIN_LOCKED_BYTES:
        return ""
    return (
        f"the pod may lock {limit // 1024} KiB of memory (RLIMIT_MEMLOCK), and RDMA needs it"
        " unlimited"
    )


def use_tcp() -> None:
    """Let NCCL use TCP, unless a variable of the job names its network."""
    os.environ.setdefault("NCCL_NET", "Socket")


def _has_capability(status: str, number: int) -> bool:
    """Return True if the status of a process (proc(5)) has a capability in its effective set."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> number & 1)
    return False
