"""Serve TCP connections on the event loop, with a limit of those that are not admitted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

CLOSE_SECONDS = 10.0
"""Time to read the rest of what was written, after which a connection is closed."""
ACCEPT_RETRY_SECONDS = 0.1


class Connection:
    """An accepted connection. It counts against the limit until `admit` is called."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str,
        admit: Callable[[Connection], None],
    ) -> None:
        self.reader, self.writer, self.address = reader, writer, address
        self._admit = admit

    def admit(self) -> None:
        """Exempt this connection from the limit: it is never closed to make room for another."""
        self._admit(self)


Handler = Callable[[Connection], Awaitable[None]]


class BoundedServer:
    """Accepts connections one by one and runs a handler for each.

    At the limit of connections that are not admitted it closes the oldest one. So connections that
    send nothing neither use up the files of the process nor keep out newer ones.
    """

    def __init__(
        self, listener: socket.socket, handler: Handler, *, limit: int, line_limit: int
    ) -> None:
        """`limit`: connections that are not admitted; `line_limit`: bytes that a read returns."""
        listener.setblocking(False)
        self._listener, self._handler = listener, handler
        self._limit, self._line_limit = limit, line_limit
        self._strangers: dict[Connection, asyncio.Task[None]] = {}
        """The oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    @property
    def port(self) -> int:
        """The port of the listener."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening and close all connections."""
        self._accepting.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, (address, *_) = await loop.sock_accept(self._listener)
                await self._start(accepted, address)
            except OSError:  # it is gone already, or this process has too many open files
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)

    async def _start(self, accepted: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._line_limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = Connection(reader, writer, address, self._admit)
        if len(self._strangers) >= self._limit:
            oldest = next(iter(self._strangers))
            oldest.writer.transport.abort()
            self._strangers.pop(oldest).cancel()
        task = asyncio.create_task(self._serve(connection))
        self._strangers[connection] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)

    async def _serve(self, connection: Connection) -> None:
        writer = connection.writer
        try:
            with contextlib.suppress(OSError):  # the other end has disconnected
                await self._handler(connection)
                writer.close()
                async with asyncio.timeout(CLOSE_SECONDS):
                    await writer.wait_closed()
        finally:
            self._strangers.pop(connection, None)
            writer.transport.abort()
