"""Signs of life from within something that may take longer than a step."""

from __future__ import annotations

import time
from collections.abc import Callable

from llmtrain_trainer.runtime.reports import HeartbeatReport, Send

HEARTBEAT_SECONDS = 0.2
"""Between two signs: less than the launcher's watch sleeps."""

Heartbeat = Callable[[], None]
"""Called whenever a piece of the work is done, as often as one likes."""


def no_heartbeat() -> None:
    """Tell nobody."""


def heartbeat_to(send: Send) -> Heartbeat:
    """Return what tells the launcher of pieces that are done, a few times a second at most."""
    last = 0.0

    def heartbeat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= HEARTBEAT_SECONDS:
            last = now
            send(HeartbeatReport())

    return heartbeat
