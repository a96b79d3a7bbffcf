"""TCP transport of launcher messages: every launcher connects to rank 0's pod, at `MASTER_PORT`.

torch's store does not fit here: its server and clients run threads, and a launcher forks ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace

from llmtrain_trainer.errors import PeerLostError
from llmtrain_trainer.launcher.restart.coordinator import RestartCoordinator
from llmtrain_trainer.launcher.restart.handshake import (
    HANDSHAKE_SECONDS,
    HandshakeError,
    verify_coordinator,
    verify_launcher,
)
from llmtrain_trainer.launcher.restart.messages import (
    MAX_LINE_BYTES,
    Command,
    LauncherEvent,
    StartRanks,
    decode_command,
    decode_event,
    encode,
)
from llmtrain_trainer.runtime.bounded_server import BoundedServer, Connection
from llmtrain_trainer.runtime.log_format import write_line
from llmtrain_trainer.runtime.run_in_thread import run_in_thread

RETRY_SECONDS = 0.5
CONNECT_SECONDS = 5.0

MIN_STRANGERS = 64
"""Connections without proof that are always possible; with two more for each pod of the gang."""

REPORT_SECONDS = 60.0
"""Time between lines of the log about rejected connections."""

CLOSE_SECONDS = 5.0
"""How long the other launchers have to end their ranks, write their message and disconnect."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
)
"""A node that loses power sends nothing; with these the connection fails after half a minute."""


class CoordinatorServer:
    """Passes the events of all launchers to the coordinator, and its commands to all launchers.

    With a key, a launcher is one that has proved it. Without, it is one that has registered ranks.
    """

    def __init__(
        self,
        coordinator: RestartCoordinator,
        open_port: Callable[[Collection[str]], int],
        listener: socket.socket,
        key: bytes | None,
        pods: int,
    ) -> None:
        """Listen for the launchers of `pods` pods.

        `open_port` opens the rendezvous port of the next generation for the addresses of all
        launchers, and returns the port.
        """
        self.coordinator = coordinator
        self._open_port = open_port
        self._key = key
        self._launchers: dict[int, Connection] = {}
        """Those that have registered."""
        self._numbers = itertools.count()
        self._rejected = 0
        self._next_report = 0.0
        self._timer: asyncio.TimerHandle | None = None
        limit = MIN_STRANGERS + 2 * pods
        self._server = BoundedServer(
            listener, self._serve_connection, limit=limit, line_limit=MAX_LINE_BYTES
        )

    async def close(self) -> None:
        """Wait until all launchers have received the last command and disconnected."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_SECONDS
        while self._launchers and loop.time() < deadline:
            await asyncio.sleep(0.02)
        self._server.close()

    async def _serve_connection(self, connection: Connection) -> None:
        launcher = next(self._numbers)
        try:
            _set_keepalive(connection.writer)
            await self._let_register(connection, launcher)
        except (OSError, EOFError, ValueError, HandshakeError) as error:
            self._report_rejected(connection.address, error)
            return
        connection.admit()
        self._launchers[launcher] = connection
        try:
            while line := await connection.reader.readline():
                self._on_line(launcher, line)
        except (OSError, ValueError) as error:
            write_line(f"closing the connection of a launcher: {error!r:.500}")
        finally:
            del self._launchers[launcher]
            connection.writer.close()
            self._broadcast(self.coordinator.on_disconnect(launcher))

    async def _let_register(self, connection: Connection, launcher: int) -> None:
        """Wait for the proof of the key and the first event."""
        reader, writer = connection.reader, connection.writer
        if self._key is None:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                line = await reader.readline()
        else:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await verify_launcher(reader, writer, self._key)
            connection.admit()  # after its proof, a launcher does not connect again
            line = await reader.readline()
        self._on_line(launcher, line)

    def _on_line(self, launcher: int, line: bytes) -> None:
        """Handle an event. The first one registers the launcher, or raises ValueError."""
        now = asyncio.get_running_loop().time()
        self._broadcast(self.coordinator.on_event(launcher, decode_event(line), now))

    def _report_rejected(self, address: str, error: Exception) -> None:
        """Log a rejected connection, unless the last line is recent: strangers may send many."""
        self._rejected += 1
        now = asyncio.get_running_loop().time()
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            write_line(f"rejected connections: {self._rejected}; from {address}: {error!r:.300}")

    def _broadcast(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            if isinstance(command, StartRanks):
                addresses = {launcher.address for launcher in self._launchers.values()}
                command = replace(command, port=self._open_port(addresses))
            for launcher in self._launchers.values():
                launcher.writer.write(encode(command))
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.coordinator.deadline is not None:
            self._timer = loop.call_at(self.coordinator.deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._broadcast(self.coordinator.on_deadline(asyncio.get_running_loop().time()))


class CoordinatorClient:
    """The connection of one launcher to the coordinator."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        self._reader, self._writer = reader, writer
        _set_keepalive(writer)
        self.address = address
        """Address of rank 0's pod."""

    @classmethod
    async def connect(
        cls, master: tuple[str, int], timeout: float, key: bytes | None
    ) -> CoordinatorClient:
        """Connect to the pod of rank 0; its name may not resolve and it may not listen yet.

        Both ends prove the key, if there is one. Raises PeerLostError after `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                address = await run_in_thread(lambda: _resolve(master), "resolve")
                return cls(*await _open(address, master[1], key), address)
            except (OSError, EOFError, HandshakeError) as error:
                if loop.time() > deadline:
                    raise PeerLostError(
                        f"rank 0's pod at {master[0]}:{master[1]} did not answer: {error!r:.300}"
                    ) from error
            await asyncio.sleep(RETRY_SECONDS)

    def send(self, event: LauncherEvent) -> None:
        """Send an event. A lost connection shows in `commands`."""
        if not self._writer.is_closing():
            self._writer.write(encode(event))

    async def commands(self) -> AsyncIterator[Command]:
        """Yield commands. Raises PeerLostError when the pod of rank 0 is gone."""
        try:
            while line := await self._reader.readline():
                yield decode_command(line)
        except (OSError, ValueError) as error:
            raise PeerLostError(f"lost the pod of rank 0: {error!r:.500}") from error
        raise PeerLostError("the pod of rank 0 is gone")

    async def close(self) -> None:
        """Send what is buffered and disconnect."""
        self._writer.close()
        with contextlib.suppress(OSError):  # the other end was first
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)


async def _open(
    address: str, port: int, key: bytes | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # Not `wait_for`: in Python 3.11 it ignores a cancellation if what it waits for has just failed.
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(address, port, limit=MAX_LINE_BYTES)
    try:
        if key is not None:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await verify_coordinator(reader, writer, key)
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def _resolve(master: tuple[str, int]) -> str:
    return str(socket.getaddrinfo(*master, type=socket.SOCK_STREAM)[0][4][0])


def _set_keepalive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(level, getattr(socket, name), value)
