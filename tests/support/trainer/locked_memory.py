"""A process that may lock little memory, as in a container that does not run as root."""

from __future__ import annotations

import ctypes
import resource

LOW_BYTES = 8 << 20
"""What systemd permits by default."""
_PR_CAPBSET_DROP = 24
_CAP_IPC_LOCK = 14


def lower_locked_memory() -> None:
    """Lower the limit of this process and of those that it executes. For `preexec_fn`.

    The program that root executes next does not have the capability that lifts the limit.
    """
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK, 0, 0, 0)
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    low = LOW_BYTES if hard == resource.RLIM_INFINITY else min(hard, LOW_BYTES)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (low, low))
