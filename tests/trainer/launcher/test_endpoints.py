"""The rendezvous and the HTTP server of a launcher."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


def test_rendezvous_retries_until_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from llmtrain_trainer.errors import PeerLostError
    from llmtrain_trainer.worker.rendezvous import _connect

    tried: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(PeerLostError, match=r"did not answer"):
        _connect(("no-such-pod.invalid", 29500), 2, timedelta(seconds=1))
    assert len(tried) > 1


def test_the_http_server_serves_only_its_routes() -> None:
    from llmtrain_trainer.launcher.http_server import Response, respond, serve
    from llmtrain_trainer.runtime.sockets import listen

    routes = {"/a": lambda: Response(b"body", "text/plain")}
    assert respond(b"GET /a?x=1 HTTP/1.1\r\n\r\n", routes).endswith(b"\r\n\r\nbody")
    assert respond(b"HEAD /a HTTP/1.1\r\n\r\n", routes).endswith(b"\r\n\r\n")
    assert b" 404 " in respond(b"GET /b HTTP/1.1\r\n\r\n", routes)
    assert b" 405 " in respond(b"POST /a HTTP/1.1\r\n\r\n", routes)
    assert b" 400 " in respond(b"\x00\xff\r\n\r\n", routes)

    async def too_long() -> bytes:
        server = serve(listen("127.0.0.1"), routes)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /" + b"a" * 20000)
        await writer.drain()
        data = await reader.read()
        writer.close()
        server.close()
        return data

    assert asyncio.run(too_long()) == b""
