"""TCP transport of launcher messages: every launcher connects to rank 0's pod, at `MASTER_PORT`.

torch's store does not fit here: its server and clients run threads, and a launcher forks ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from llmtrain_trainer.errors import PeerLostError
from llmtrain_trainer.launcher.restart.coordinator import RestartCoordinator
from llmtrain_trainer.launcher.restart.messages import (
    MAX_LINE_BYTES,
    Command,
    LauncherEvent,
    StartRanks,
    decode_command,
    decode_event,
    encode,
)
from llmtrain_trainer.runtime.log_format import write_line
from llmtrain_trainer.runtime.run_in_thread import run_in_thread

RETRY_SECONDS = 0.5

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
    """Passes the events of all launchers to the coordinator, and its commands to all launchers."""

    def __init__(self, coordinator: RestartCoordinator, open_port: Callable[[], int]) -> None:
        """`open_port` opens the rendezvous port of the next generation and returns it."""
        self.coordinator = coordinator
        self._open_port = open_port
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    async def serve(
        cls, coordinator: RestartCoordinator, open_port: Callable[[], int], address: str, port: int
    ) -> CoordinatorServer:
        """Listen for launchers on the pod's own address."""
        server = cls(coordinator, open_port)
        server._server = await asyncio.start_server(
            server._serve_launcher,
            address,
            port,
            limit=MAX_LINE_BYTES,
            reuse_address=True,
            backlog=4096,
        )
        return server

    async def close(self) -> None:
        """Wait until all launchers have received the last command and disconnected."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_SECONDS
        while self._writers and loop.time() < deadline:
            await asyncio.sleep(0.02)
        if self._server is not None:
            self._server.close()

    async def _serve_launcher(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Receive events of one launcher until it disconnects."""
        loop, launcher = asyncio.get_running_loop(), next(self._numbers)
        _set_keepalive(writer)
        self._writers[launcher] = writer
        try:
            while line := await reader.readline():
                event = decode_event(line)
                self._broadcast(self.coordinator.on_event(launcher, event, loop.time()))
        except (OSError, ValueError) as error:
            write_line(f"closing the connection of a launcher: {error!r:.500}")
        finally:
            del self._writers[launcher]
            writer.close()
            self._broadcast(self.coordinator.on_disconnect(launcher))

    def _broadcast(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            if isinstance(command, StartRanks):
                command = replace(command, port=self._open_port())
            for writer in self._writers.values():
                writer.write(encode(command))
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

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        _set_keepalive(writer)
        self.address: str = writer.get_extra_info("peername")[0]
        """Address of rank 0's pod."""

    @classmethod
    async def connect(cls, master: tuple[str, int], timeout: float) -> CoordinatorClient:
        """Connect to the pod of rank 0; its name may not resolve and it may not listen yet.

        Raises PeerLostError after `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                address = await run_in_thread(lambda: _resolve(master), "resolve")
                opening = asyncio.open_connection(address, master[1], limit=MAX_LINE_BYTES)
                return cls(*await asyncio.wait_for(opening, 5.0))
            except OSError as error:
                if loop.time() > deadline:
                    raise PeerLostError(
                        f"rank 0's pod at {master[0]}:{master[1]} did not answer: {error}"
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


def _resolve(master: tuple[str, int]) -> str:
    return str(socket.getaddrinfo(*master, type=socket.SOCK_STREAM)[0][4][0])


def _set_keepalive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(level, getattr(socket, name), value)
