"""What a launcher asks of a running rank: a few numbers in memory that both see.

Ranks must save after the same step, and a rank in a collective can only be asked between steps. So
they are held first: from then on none starts another step, and the launcher can read which step
each has started. The latest of them, over all pods, is the step that all can and must finish.
"""

from __future__ import annotations

import mmap
import time

_NO_LIMIT = 2**62
_STARTED, _HELD, _LAST = range(3)
POLL_SECONDS = 0.002


class Orders:
    """Shared by one rank and its launcher; made before the fork."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, 3 * 8)).cast("q")
        self._cells[_LAST] = _NO_LIMIT

    # the launcher's side

    @property
    def started(self) -> int:
        """The step that the rank has started last, counted from 1; 0: none yet."""
        return self._cells[_STARTED]

    def hold(self) -> None:
        """Let the rank start no further step until it is told which one is the last."""
        self._cells[_HELD] = 1

    def finish(self, step: int) -> None:
        """Let the rank go on up to this step."""
        self._cells[_LAST] = step
        self._cells[_HELD] = 0

    # the rank's side

    def allow(self, step: int) -> bool:
        """Tell whether the rank is to take this step; waits while it is held.

        Writes before it reads: a launcher that has set the hold and then reads knows the latest
        step that this rank may take.
        """
        self._cells[_STARTED] = step
        while self._cells[_HELD]:
            time.sleep(POLL_SECONDS)
        return step <= self._cells[_LAST]
