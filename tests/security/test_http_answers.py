"""Answers of hostile pods to the operator's requests, at their address and through `pods/proxy`.

The pod and the API server are sockets on loopback addresses, which send what no framework would.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from kubernetes.aio.client.configuration import Configuration

from llmtrain_core.api import env
from llmtrain_devcluster.addresses import AddressBlock
from llmtrain_operator.errors import ApiError
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.resources import NODES
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.progress import poller as polling
from llmtrain_operator.progress.poller import MAX_RESPONSE_BYTES, ProgressPoller
from tests.support.operator_harness.observed import pod

pytestmark = pytest.mark.unit

GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"step": 7}'
EMPTY_LIST = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 47\r\n\r\n{"metadata":{"resourceVersion":"1"},"items":[]}'
)
SMALL = 64 * 1024 * 1024
"""The memory of this process may grow by this much during an attack."""

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that records the heads of its requests and answers each by a function."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.heads: list[str] = []
        self.sent = 0
        self.port = 0

    def paths(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await self.answer(writer)
                await writer.drain()
        writer.close()

    async def flood(self, writer: asyncio.StreamWriter, head: bytes, chunk: bytes) -> None:
        """Send the chunk again and again, until the client hangs up."""
        writer.write(head)
        while True:
            writer.write(chunk)
            await writer.drain()
            self.sent += len(chunk)


def says(data: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


@contextlib.asynccontextmanager
async def listening(host: str, port: int, answer: Answer) -> AsyncIterator[Peer]:
    peer = Peer(answer)
    server = await asyncio.start_server(peer.serve, host, port)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator waits as long for an answer as a busy machine may need."""
    monkeypatch.setattr(polling, "TIMEOUT_SECONDS", 60.0)


@pytest.fixture(scope="module")
def addresses() -> Iterator[AddressBlock]:
    block = AddressBlock()
    yield block
    block.close()


@pytest.fixture
def address(addresses: AddressBlock) -> str:
    return addresses.allocate()


def client(port: int, host: str = "127.0.0.1") -> KubeClient:
    return KubeClient(Configuration(host=f"http://{host}:{port}"), Metrics().requests)


async def polled(address: str, proxy: KubeClient | None = None) -> object:
    """Return the report that the operator gets from a pod, or None."""
    poller = ProgressPoller(proxy, 1.0, lambda job: None)
    try:
        poller.poll(pod(0, address=address))
        while poller._tasks:
            await asyncio.gather(*poller._tasks.values())
        return poller.take_report("uid")
    finally:
        await poller.close()


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body])


def redirect(target: str) -> bytes:
    return answer(b"", b"Location: " + target.encode(), status=b"302 Found")


async def test_an_honest_answer_is_read(address: str) -> None:
    async with listening(address, env.HTTP_PORT, says(GOOD)) as peer:
        assert await polled(address) == {"step": 7}
        assert peer.paths() == [env.STATUS_PATH]


async def test_a_pod_that_redirects_to_another_server_gets_no_further_request(address: str) -> None:
    async with listening("127.0.0.1", 0, says(GOOD)) as other:
        target = f"http://127.0.0.1:{other.port}/status"
        async with listening(address, env.HTTP_PORT, says(redirect(target))) as peer:
            assert await polled(address) is None
            assert len(peer.heads) == 1
        assert other.heads == []


@pytest.mark.parametrize(
    "target",
    ["../../../../other/pods/secret", "/api/v1/nodes", "//127.0.0.1/api/v1/nodes", "?watch=true"],
)
async def test_a_redirect_through_the_proxy_reads_nothing_with_the_operators_token(
    target: str,
) -> None:
    async with listening("127.0.0.1", 0, says(redirect(target))) as server:
        api = client(server.port)
        with pytest.raises(ApiError) as refused:
            await api.proxy("job-0-0", "team", env.HTTP_PORT, env.STATUS_PATH, MAX_RESPONSE_BYTES)
        await api.close()
        assert refused.value.status == 302
        assert server.paths() == ["/api/v1/namespaces/team/pods/job-0-0:9400/proxy/status"]


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip"])
async def test_a_compressed_answer_is_not_decompressed(address: str, coding: bytes) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compressed = says(answer(bomb, b"Content-Encoding: " + coding))
    async with listening(address, env.HTTP_PORT, compressed) as peer:
        assert await polled(address) is None
        assert "accept-encoding: identity" in peer.heads[0].lower()
    async with listening("127.0.0.1", 0, compressed) as server:
        api = client(server.port)
        with pytest.raises(ApiError):
            await api.proxy("job-0-0", "team", env.HTTP_PORT, env.STATUS_PATH, MAX_RESPONSE_BYTES)
        await api.close()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < SMALL


CHUNK = bytes(64 * 1024)
ENDLESS = {
    "body without length": (b"HTTP/1.1 200 OK\r\n\r\n", CHUNK),
    "body with a large length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", CHUNK),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"10000\r\n" + CHUNK + b"\r\n",
    ),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
    "many headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10000),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_an_endless_answer_is_cut(
    address: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "TIMEOUT_SECONDS", 1.0)
    head, chunk = ENDLESS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def flood(writer: asyncio.StreamWriter) -> None:
        await peer.flood(writer, head, chunk)

    async with listening(address, env.HTTP_PORT, flood) as peer:
        assert await polled(address) is None
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < SMALL


@pytest.mark.parametrize("part", [b"", b"H", b" "])
async def test_an_answer_that_never_ends_gives_up_in_time(
    address: str, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "TIMEOUT_SECONDS", 0.5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" if part == b" " else b""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with listening(address, env.HTTP_PORT, drip):
        assert await polled(address) is None


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("body", [DEEP, b'{"step": ' + DEEP + b"}", b'{"step": ' + b"9" * 50_000])
async def test_deep_or_huge_json_is_no_report(address: str, body: bytes) -> None:
    async with listening(address, env.HTTP_PORT, says(answer(body))):
        assert await polled(address) is None


STATUSES = (
    DEEP,
    b'{"details": ' + DEEP + b"}",
    b'{"reason": "AlreadyExists", "message": 1, "details": [1]}',
    b'{"details": {"retryAfterSeconds": "soon"}}',
)


@pytest.mark.parametrize("body", STATUSES)
async def test_an_error_of_a_pod_is_no_status_of_the_api_server(body: bytes) -> None:
    failing = answer(body, b"Retry-After: 9999", status=b"500 Internal Server Error")
    async with listening("127.0.0.1", 0, says(failing)) as server:
        api = client(server.port)
        with pytest.raises(ApiError) as refused:
            await api.proxy("job-0-0", "team", env.HTTP_PORT, env.STATUS_PATH, MAX_RESPONSE_BYTES)
        assert (refused.value.reason, refused.value.retry_after) == ("", 0)
        with pytest.raises(ApiError):
            await api.list_page(NODES)
        await api.close()


async def test_cookies_of_a_pod_are_not_sent_to_the_api_server() -> None:
    cookies = [b"Set-Cookie: c%d=%s; Path=/" % (index, b"x" * 4000) for index in range(50)]
    async with listening("localhost", 0, says(answer(b"{}", *cookies))) as server:
        api = client(server.port, "localhost")
        await api.proxy("job-0-0", "team", env.HTTP_PORT, env.STATUS_PATH, MAX_RESPONSE_BYTES)
        await api.get(NODES, "node")
        await api.close()
        assert len(server.heads) == 2
        assert "cookie" not in server.heads[1].lower()


async def test_without_the_flag_no_request_goes_through_the_api_server(address: str) -> None:
    async with listening("127.0.0.1", 0, says(GOOD)) as server:
        api = client(server.port)
        assert await polled(address, None) is None
        assert server.heads == []
        assert await polled(address, api) == {"step": 7}
        await api.close()


async def test_pods_that_never_answer_do_not_delay_those_of_another_tenant(
    addresses: AddressBlock,
) -> None:
    tarpit, honest = addresses.allocate(), addresses.allocate()
    released = asyncio.Event()
    reported = asyncio.Event()

    async def hold(writer: asyncio.StreamWriter) -> None:
        await released.wait()

    poller = ProgressPoller(None, 0.0, lambda job: reported.set())
    async with (
        listening(tarpit, env.HTTP_PORT, hold) as held,
        listening(honest, env.HTTP_PORT, says(GOOD)),
    ):
        for _ in range(3):
            for index in range(200):
                poller.poll(pod(0, address=tarpit, namespace="mallory", job=f"m{index}"))
            while not held.heads:
                await asyncio.sleep(0.01)
        assert len(poller._tasks) == 200, "a request does not wait behind another of its job"
        poller.poll(pod(0, address=honest, namespace="bob", job="b"))
        await reported.wait()
        assert poller.take_report("b") == {"step": 7}
        assert len(held.heads) <= polling.MAX_CONCURRENT_PER_NAMESPACE
        released.set()
        await poller.close()
