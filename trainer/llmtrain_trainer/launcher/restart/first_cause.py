"""Why a rank's process ended, and which of several failures is the cause. Pure functions."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

from llmtrain_core.api.env import EXIT_EXCEPTION
from llmtrain_core.api.failure_info import FailureInfo


def rank_failure(rank: int, code: int, reported: FailureInfo | None) -> FailureInfo:
    """Return the failure of a rank whose process ended with `code`, or by the signal -`code`.

    `reported` is what the rank itself reported before.
    """
    pod_code = _pod_exit_code(code)
    return replace(reported or _unreported(rank, code), rank=rank, exit_code=pod_code)


def first_cause(failures: Sequence[FailureInfo]) -> FailureInfo:
    """Return the cause among failures in the order in which they were seen.

    A lost peer is the cause only if nothing else failed: the failure of the rank that broke the
    group may be noticed after those of its peers. A GPU that cannot be used comes first.
    """
    lost_gpus = (failure for failure in failures if not failure.keeps_nodes)
    own = (failure for failure in failures if not failure.is_consequence)
    return next(lost_gpus, None) or next(own, failures[0])


def _pod_exit_code(code: int) -> int:
    """Return the pod's exit code for a rank's: 128 + n for signal n, else the rank's own."""
    if code < 0:
        return 128 - code
    return code if code < 256 else EXIT_EXCEPTION


def _unreported(rank: int, code: int) -> FailureInfo:
    if code >= 0:
        return FailureInfo("ExitCode", f"rank {rank} exited with code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    text = f"rank {rank} was killed by {name}"
    if -code == signal.SIGKILL:
        text += " (out of memory, or someone killed it)"
    return FailureInfo("Signal", text)
