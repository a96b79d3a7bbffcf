"""Heartbeats of operations that may take longer than a training step."""

from __future__ import annotations

import time
from collections.abc import Callable

from llmtrain_trainer.runtime.reports import HeartbeatReport, Send

HEARTBEAT_SECONDS = 0.2
"""Least time between two reports; shorter than the interval of the launcher's hang check."""

Heartbeat = Callable[[], None]
"""Called whenever a part of the work is done, at any rate."""


def no_heartbeat() -> None:
    """Do nothing: the default where no launcher is watching."""


def heartbeat_to(send: Send) -> Heartbeat:
    """Return a heartbeat that reports to the launcher a few times a second at most."""
    last = 0.0

    def heartbeat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= HEARTBEAT_SECONDS:
            last = now
            send(HeartbeatReport())

    return heartbeat
