"""The connection of a launcher to the coordinator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmtrain_trainer.launcher.restart import transport
from llmtrain_trainer.launcher.restart.transport import CoordinatorClient

pytestmark = pytest.mark.unit


async def test_a_cancelled_attempt_to_connect_ends_while_the_port_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A launcher whose data step failed would wait for the end of its startup timeout."""
    attempts: list[asyncio.Future[None]] = []

    async def refuse(*_: Any, **__: Any) -> None:
        attempts.append(asyncio.get_running_loop().create_future())
        await attempts[-1]
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    monkeypatch.setattr(transport, "RETRY_SECONDS", 0.01)
    connecting = asyncio.create_task(CoordinatorClient.connect(("127.0.0.1", 1), 600, None))
    while not attempts:
        await asyncio.sleep(0.01)
    attempts[0].set_result(None)
    await asyncio.sleep(0)  # the attempt has failed, and the client has not seen it yet
    connecting.cancel()
    await asyncio.wait([connecting], timeout=10)
    assert connecting.cancelled()
