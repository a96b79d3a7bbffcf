"""The launchers' wire: one connection per launcher to the pod of rank 0, on `MASTER_PORT`.

Not torch's store: its server and clients run threads, and a launcher forks ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from llmtrain_trainer.errors import PeerLostError
from llmtrain_trainer.launcher.restart.coordinator import Agreement
from llmtrain_trainer.launcher.restart.messages import (
    LONGEST_LINE,
    Order,
    Start,
    Word,
    encode,
    read_order,
    read_word,
)
from llmtrain_trainer.runtime.blocking import in_a_thread

RETRY_SECONDS = 0.5

HANG_UP_SECONDS = 5.0
"""For other launchers to end their ranks, leave their message and hang up."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
)
"""A node that loses its power sends nothing: it is noticed after half a minute."""


class Host:
    """Carries the words of all launchers to the agreement, and its orders to all of them."""

    def __init__(self, agreement: Agreement, open_port: Callable[[], int]) -> None:
        """`open_port` listens where the ranks of the next generation meet; returns the port."""
        self.agreement = agreement
        self._open_port = open_port
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    async def serve(
        cls, agreement: Agreement, open_port: Callable[[], int], address: str, port: int
    ) -> Host:
        """Listen for launchers on the pod's own address."""
        host = cls(agreement, open_port)
        host._server = await asyncio.start_server(
            host._attend, address, port, limit=LONGEST_LINE, reuse_address=True, backlog=4096
        )
        return host

    async def close(self) -> None:
        """Wait until all launchers have read the last order and hung up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HANG_UP_SECONDS
        while self._writers and loop.time() < deadline:
            await asyncio.sleep(0.02)
        if self._server is not None:
            self._server.close()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Listen to one launcher until it is gone."""
        loop, member = asyncio.get_running_loop(), next(self._numbers)
        _keep_alive(writer)
        self._writers[member] = writer
        try:
            while line := await reader.readline():
                self._tell(self.agreement.hear(member, read_word(line), loop.time()))
        except (OSError, ValueError) as error:
            print(f"a launcher is not heard any more: {error!r:.500}", file=sys.stderr)
        finally:
            del self._writers[member]
            writer.close()
            self._tell(self.agreement.lose(member))

    def _tell(self, orders: tuple[Order, ...]) -> None:
        for order in orders:
            if isinstance(order, Start):
                order = replace(order, port=self._open_port())
            for writer in self._writers.values():
                writer.write(encode(order))
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.agreement.deadline is not None:
            self._timer = loop.call_at(self.agreement.deadline, self._expire)

    def _expire(self) -> None:
        self._tell(self.agreement.expire(asyncio.get_running_loop().time()))


class Link:
    """A launcher's end of the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        _keep_alive(writer)
        self.host: str = writer.get_extra_info("peername")[0]
        """Address of rank 0's pod."""

    @classmethod
    async def connect(cls, master: tuple[str, int], timeout: float) -> Link:
        """Connect to the pod of rank 0; its name may not resolve and it may not listen yet.

        Raises PeerLostError after `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                address = await in_a_thread(lambda: _resolve(master), "resolve")
                opening = asyncio.open_connection(address, master[1], limit=LONGEST_LINE)
                return cls(*await asyncio.wait_for(opening, 5.0))
            except OSError as error:
                if loop.time() > deadline:
                    raise PeerLostError(
                        f"rank 0's pod at {master[0]}:{master[1]} did not answer: {error}"
                    ) from error
            await asyncio.sleep(RETRY_SECONDS)

    def say(self, word: Word) -> None:
        """Send a word; whether it arrives shows in the orders."""
        if not self._writer.is_closing():
            self._writer.write(encode(word))

    async def orders(self) -> AsyncIterator[Order]:
        """Yield orders. Raises PeerLostError when the pod of rank 0 is gone."""
        try:
            while line := await self._reader.readline():
                yield read_order(line)
        except (OSError, ValueError) as error:
            raise PeerLostError(f"lost the pod of rank 0: {error!r:.500}") from error
        raise PeerLostError("the pod of rank 0 is gone")

    async def close(self) -> None:
        """Hang up, after what was said has been sent."""
        self._writer.close()
        with contextlib.suppress(OSError):  # the other end was first
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)


def _resolve(master: tuple[str, int]) -> str:
    return str(socket.getaddrinfo(*master, type=socket.SOCK_STREAM)[0][4][0])


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(level, getattr(socket, name), value)
