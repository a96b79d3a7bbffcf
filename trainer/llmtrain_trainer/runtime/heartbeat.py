"""Signs of life from within something that may take longer than a step."""

from __future__ import annotations

import time
from collections.abc import Callable

from llmtrain_trainer.runtime.reports import AliveReport, Send

BEAT_SECONDS = 0.2
"""Between two signs: less than the launcher's watch sleeps."""

Pulse = Callable[[], None]
"""Called whenever a piece of the work is done, as often as one likes."""


def no_pulse() -> None:
    """Tell nobody."""


def pulse(send: Send) -> Pulse:
    """Return what tells the launcher of pieces that are done, a few times a second at most."""
    last = 0.0

    def beat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= BEAT_SECONDS:
            last = now
            send(AliveReport())

    return beat
