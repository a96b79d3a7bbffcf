"""Strangers at the port of the coordinator: without the key, no byte of theirs is parsed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmtrain_trainer.errors import InputError, PeerLostError
from llmtrain_trainer.launcher.restart import transport
from llmtrain_trainer.launcher.restart.coordinator import RestartCoordinator
from llmtrain_trainer.launcher.restart.handshake import (
    MAC_BYTES,
    NONCE_BYTES,
    HandshakeError,
    proof,
    verify_coordinator,
)
from llmtrain_trainer.launcher.restart.messages import (
    End,
    Ready,
    Registered,
    StartRanks,
    encode,
)
from llmtrain_trainer.launcher.restart.transport import CoordinatorClient, CoordinatorServer
from llmtrain_trainer.runtime.gang_key import read_gang_key
from llmtrain_trainer.runtime.sockets import listen, raise_file_limit

pytestmark = [pytest.mark.unit, pytest.mark.timeout(120)]

KEY, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)
ADDRESS = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Gang:
    """The coordinator of a gang of two pods with a rank each, and its port."""

    def __init__(self, key: bytes | None) -> None:
        self.opened: list[set[str]] = []
        self.coordinator = RestartCoordinator(2, 3, 600.0, saves=False)
        listener = listen(ADDRESS)
        self.server = CoordinatorServer(self.coordinator, self._open, listener, key, 2)
        self.port = listener.getsockname()[1]

    def _open(self, addresses: object) -> int:
        self.opened.append(set(addresses))  # type: ignore[call-overload]
        return 4242

    async def stranger(self) -> Streams:
        return await asyncio.open_connection(ADDRESS, self.port)

    async def join(self, rank: int, key: bytes | None) -> CoordinatorClient:
        client = await CoordinatorClient.connect((ADDRESS, self.port), 60.0, key)
        client.send(Registered((rank,)))
        client.send(Ready(0))
        return client

    async def starts(self, key: bytes | None) -> None:
        """Let both launchers join, and wait until their ranks start."""
        clients = [await self.join(rank, key) for rank in range(2)]
        for client in clients:
            assert await anext(client.commands()) == StartRanks(0, 4242)
        assert self.opened == [{ADDRESS}]
        for client in clients:
            await client.close()


@asynccontextmanager
async def _gang(key: bytes | None = KEY) -> AsyncIterator[Gang]:
    gang = Gang(key)
    try:
        yield gang
    finally:
        gang.server._server.close()


async def _closed(reader: asyncio.StreamReader) -> bytes:
    """Return what the other end sent until it closed the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(4096):
            received += data
    return received


REGISTER = encode(Registered((0, 1)))


@pytest.mark.parametrize(
    "sent",
    [
        REGISTER + encode(Ready(0)),
        b"\x00" * (NONCE_BYTES + MAC_BYTES) + REGISTER,
        os.urandom(NONCE_BYTES) + os.urandom(MAC_BYTES) + REGISTER,
        b"GET / HTTP/1.1\r\n\r\n" * 8,
        b"x" * 4_000_000,
    ],
    ids=["a message of an older release", "zeros", "random", "HTTP", "endless"],
)
async def test_without_the_key_nothing_is_parsed(
    sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    async with _gang() as gang:
        reader, writer = await gang.stranger()
        writer.write(sent)
        assert len(await _closed(reader)) == NONCE_BYTES  # and no proof of the coordinator
        writer.close()
        await gang.starts(KEY)
    log = capfd.readouterr().err
    assert "rejected connections: 1; from 127.0.0.1" in log and KEY.hex() not in log


async def test_a_launcher_of_another_attempt_or_job_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "RETRY_SECONDS", 0.01)
    async with _gang() as gang:
        for key in (OTHER, KEY[::-1]):
            with pytest.raises(PeerLostError, match="did not answer"):
                await CoordinatorClient.connect((ADDRESS, gang.port), 0.05, key)
        await gang.starts(KEY)


async def test_a_replayed_hello_is_refused() -> None:
    """What a launcher has sent once proves nothing on another connection."""
    async with _gang() as gang:
        reader, writer = await gang.stranger()
        nonce, own = await reader.readexactly(NONCE_BYTES), os.urandom(NONCE_BYTES)
        hello = own + proof(KEY, "launcher", nonce, own)
        writer.write(hello)
        assert await reader.readexactly(MAC_BYTES) == proof(KEY, "coordinator", nonce, own)
        writer.close()
        reader, writer = await gang.stranger()
        writer.write(hello + REGISTER)
        assert len(await _closed(reader)) == NONCE_BYTES
        writer.close()
        await gang.starts(KEY)


async def test_a_coordinator_cannot_be_made_of_reflections() -> None:
    """An impostor returns the nonce and the proof of the launcher to the launcher."""

    async def reflect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = os.urandom(NONCE_BYTES)
        writer.write(nonce)
        hello = await reader.readexactly(NONCE_BYTES + MAC_BYTES)
        writer.write(hello[NONCE_BYTES:])
        writer.close()

    async with await asyncio.start_server(reflect, ADDRESS, 0) as impostor:
        reader, writer = await asyncio.open_connection(*impostor.sockets[0].getsockname())
        with pytest.raises(HandshakeError):
            await verify_coordinator(reader, writer, KEY)
        writer.close()
    nonces = os.urandom(NONCE_BYTES), os.urandom(NONCE_BYTES)
    assert proof(KEY, "launcher", *nonces) != proof(KEY, "coordinator", *nonces)


@pytest.mark.parametrize("iterations", range(8))
async def test_a_launcher_that_is_stopped_does_not_try_again(
    iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coordinator may end the connection in the same iteration of the event loop."""
    monkeypatch.setattr(transport, "_resolve", lambda master: master[0])
    accepted: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    async with await asyncio.start_server(accept, ADDRESS, 0) as server:
        address = server.sockets[0].getsockname()
        joining = asyncio.create_task(CoordinatorClient.connect(address, 600.0, KEY))
        while not accepted:
            await asyncio.sleep(0.001)
        accepted[0].transport.abort()
        for _ in range(iterations):
            await asyncio.sleep(0)
        joining.cancel()
        await asyncio.wait((joining,), timeout=10)
        assert joining.cancelled()


async def test_a_launcher_sends_no_message_to_an_impostor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RETRY_SECONDS", 0.01)
    received: list[bytes] = []

    async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(os.urandom(NONCE_BYTES) + os.urandom(MAC_BYTES) + encode(End()))
        received.append(await _closed(reader))
        writer.close()

    async with await asyncio.start_server(listen_in, ADDRESS, 0) as impostor:
        with pytest.raises(PeerLostError, match="does not have the key"):
            await CoordinatorClient.connect(impostor.sockets[0].getsockname(), 0.05, KEY)
        async with asyncio.timeout(60):  # the launcher knows first that the connection has ended
            while not received:
                await asyncio.sleep(0.001)
    assert {len(data) for data in received} == {NONCE_BYTES + MAC_BYTES}


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
@pytest.mark.parametrize("sent", [b"", b"{"], ids=["silent", "one byte"])
async def test_who_proves_nothing_in_time_is_disconnected(
    sent: bytes, key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_SECONDS", 0.1)
    async with _gang(key) as gang:
        reader, writer = await gang.stranger()
        writer.write(sent)
        await _closed(reader)
        writer.close()


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
async def test_1500_idle_connections_keep_no_launcher_out(key: bytes | None) -> None:
    raise_file_limit()  # for the ends of the strangers
    async with _gang(key) as gang:
        idle = [await gang.stranger() for _ in range(1500)]
        open_files = len(list(Path("/proc/self/fd").iterdir()))
        await gang.starts(key)
        limit = transport.MIN_STRANGERS + 2 * 2
        assert len(gang.server._server._strangers) <= limit
        assert open_files < 1500 + limit + 100  # the ends of the strangers, and a few of the gang
        for _, writer in idle:
            writer.transport.abort()


async def test_idle_connections_do_not_end_a_gang_that_runs() -> None:
    async with _gang() as gang:
        clients = [await gang.join(rank, KEY) for rank in range(2)]
        commands = clients[0].commands()
        await anext(commands)
        idle = [await gang.stranger() for _ in range(200)]
        for _, writer in idle:
            writer.transport.abort()
        assert gang.coordinator.phase == "running"
        assert len(gang.server._launchers) == 2
        for client in clients:
            await client.close()


async def test_a_message_of_a_launcher_has_a_limit(capfd: pytest.CaptureFixture[str]) -> None:
    """It ends the launcher that sent it, as a lost connection does."""
    async with _gang() as gang:
        first, second = [await gang.join(rank, KEY) for rank in range(2)]
        commands = first.commands()
        await anext(commands)
        second._writer.write(b"x" * (transport.MAX_LINE_BYTES + 2))
        end = await anext(commands)
        assert isinstance(end, End) and end.cause is not None and end.cause.reason == "PeerLost"
        for client in (first, second):
            await client.close()
    assert "closing the connection of a launcher" in capfd.readouterr().err


async def test_a_gang_without_a_key_works_as_before() -> None:
    """Its operator is older than the trainer; the messages are those of the older release."""
    async with _gang(None) as gang:
        await gang.starts(None)
    async with _gang(None) as gang:
        reader, writer = await gang.stranger()
        writer.write(REGISTER + encode(Ready(0)))
        assert await reader.readline() == encode(StartRanks(0, 4242))
        writer.close()


def test_the_key_depends_on_the_attempt(tmp_path: Path) -> None:
    assert read_gang_key(tmp_path, 0) is None
    (tmp_path / "gang-key").write_text(KEY.hex())
    keys = {read_gang_key(tmp_path, attempt) for attempt in (0, 0, 1, 10)}
    assert len(keys) == 3 and KEY not in keys and all(len(key or b"") == 32 for key in keys)


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "xy" * 32, "é" * 32])
def test_a_file_that_is_no_key_is_an_error_that_does_not_show_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "gang-key").write_text(text)
    with pytest.raises(InputError) as error:
        read_gang_key(tmp_path, 0)
    assert error.value.reason == "InvalidEnvironment" and "gang-key" in error.value.message
    assert not text or text not in error.value.message
