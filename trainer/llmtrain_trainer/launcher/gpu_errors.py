"""The Xids of this pod's GPUs, and the failures that they explain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmtrain_core.api.defaults import MAX_XIDS
from llmtrain_core.api.env import EXIT_GPU_ERROR, EXIT_INPUT
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.node_health.xid import Xid, XidAction, worst_action
from llmtrain_trainer.runtime.log_format import write_line

GPU_ERROR = "GpuError"
RECENT_SECONDS = 60.0
"""An Xid that only needs a restart explains failures that follow within this time. A GPU that needs
a reset stays unusable."""
MAX_TEXT = 200

ReadXids = Callable[[], Sequence[Xid]]
"""Returns the Xids since its last call: the events of NVML, or lines of the kernel log."""


class XidLog:
    """The Xids that may explain a failure now."""

    def __init__(
        self, sources: Sequence[ReadXids], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources, self._clock = sources, clock
        self._seen: dict[Xid, float] = {}
        """When each was last reported."""

    def poll(self) -> None:
        """Read the sources. An error of a source means that it has nothing to say."""
        for read in self._sources:
            try:
                found = read()
            except Exception as error:  # NVML has its own error classes
                write_line(f"cannot read the Xids of the GPUs: {error!r}")
                continue
            for xid in found:
                if xid not in self._seen:
                    write_line(f"a GPU reports Xid {xid.code} ({xid.action}) {xid.text[:MAX_TEXT]}")
                if xid.action != XidAction.IGNORE:
                    self._seen[xid] = self._clock()

    def current(self) -> list[Xid]:
        """Return the Xids that may be the cause of a failure now, the most severe first."""
        self.poll()
        now = self._clock()
        found = [
            xid
            for xid, seen in self._seen.items()
            if xid.action.is_severe or now - seen <= RECENT_SECONDS
        ]
        return sorted(found, key=lambda xid: (-xid.action.severity, xid.code))


def explained(failure: FailureInfo, xids: Sequence[Xid]) -> FailureInfo:
    """Return a failure of this pod with the Xids of its GPUs, which are its cause.

    A lost peer is explained only by an Xid after which the GPU cannot be used: if the ranks of
    another pod fail, those of this one are torn down, which may cause milder ones. Wrong input and
    a stop signal are causes of their own. An Xid 154 alone is in the text, not in the codes: its
    number does not say what is needed.
    """
    worst = worst_action(xid.action for xid in xids)
    if worst == XidAction.IGNORE or failure.reason in (GPU_ERROR, "Terminated"):
        return failure
    if failure.exit_code == EXIT_INPUT or (failure.is_consequence and not worst.is_severe):
        return failure
    named = ", ".join(dict.fromkeys(f"Xid {xid.code} ({xid.action})" for xid in xids[:MAX_XIDS]))
    return replace(
        failure,
        reason=GPU_ERROR,
        message=f"{named}; {failure.reason}: {failure.message}",
        exit_code=EXIT_GPU_ERROR,
        xids=tuple(dict.fromkeys(xid.code for xid in xids[:MAX_XIDS])),
        keeps_nodes=not worst.is_severe,
    )
