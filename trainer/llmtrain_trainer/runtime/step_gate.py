"""Pause and stop a running rank between steps, through memory shared with its launcher.

All ranks have to save after the same step, but a rank inside a collective cannot react. So first
every launcher pauses its ranks: none starts another step, and the launcher reads the last step that
each rank has started. The highest of these, over all pods, is the step after which all ranks stop.
"""

from __future__ import annotations

import mmap
import time

_NO_LIMIT = 2**62
_STARTED, _PAUSED, _LAST = range(3)
POLL_SECONDS = 0.002


class StepGate:
    """Shared by one rank and its launcher; created before the fork."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, 3 * 8)).cast("q")
        self._cells[_LAST] = _NO_LIMIT

    # called by the launcher

    @property
    def started(self) -> int:
        """The last step that the rank has started, counted from 1; 0 if none."""
        return self._cells[_STARTED]

    def pause(self) -> None:
        """Let the rank start no further step until `stop_after`."""
        self._cells[_PAUSED] = 1

    def stop_after(self, step: int) -> None:
        """Let the rank continue up to and including this step."""
        self._cells[_LAST] = step
        self._cells[_PAUSED] = 0

    # called by the rank

    @property
    def stopping(self) -> bool:
        """True from a pause on: the job is stopped early."""
        return bool(self._cells[_PAUSED]) or self._cells[_LAST] != _NO_LIMIT

    def start(self, step: int) -> bool:
        """Wait while paused; return True if the rank has to take this step.

        Writes before it reads: a launcher that has paused the rank and then reads `started` gets
        the last step that the rank may take.
        """
        self._cells[_STARTED] = step
        while self._cells[_PAUSED]:
            time.sleep(POLL_SECONDS)
        return step <= self._cells[_LAST]
