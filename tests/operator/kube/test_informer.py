"""The cache stays correct after disconnects, expired versions, bad responses and lost deletions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.aio.client.configuration import Configuration

from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.informer import Selection
from llmtrain_operator.kube.resources import PODS
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.fake_api import FakeApi
from tests.support.operator_harness.informers import RecordedInformer, short_delays  # noqa: F401

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("short_delays")]


def connect(url: str) -> KubeClient:
    configuration = Configuration(host=url)
    return KubeClient(configuration, Metrics().requests)


@contextlib.asynccontextmanager
async def followed(server: FakeApi) -> AsyncIterator[RecordedInformer]:
    cluster = connect(server.url)
    follower = RecordedInformer(cluster, Selection(PODS))
    task = asyncio.create_task(follower.informer.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await cluster.close()


async def test_pages_then_events() -> None:
    async with FakeApi() as server:
        for name in "abcde":
            server.put(name, job="j1")
        async with followed(server) as follower:
            await follower.informer.synced.wait()
            assert follower.names() == set("abcde")
            assert server.lists == 3, "five objects, two a page"
            await follower.until(lambda: len(server.watches) == 1)
            server.put("f", job="j2")
            server.put("a", job="j2")
            server.remove("b")
            await follower.until(lambda: follower.informer.last_version == server.version)
            assert follower.names() == set("acdef")
            assert {r[0] for r in follower.informer.by_index("job", "j2")} == {"a", "f"}
            assert {r[0] for r in follower.informer.by_index("job", "j1")} == {"c", "d", "e"}
            assert follower.informer.by_index("job", "none") == []


async def test_a_watch_continues_at_the_last_version() -> None:
    async with FakeApi() as server:
        server.put("a")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            server.bookmark()
            await follower.until(lambda: follower.informer.last_version == server.version)
            server.hang_up()
            await follower.until(lambda: len(server.watches) == 2)
            assert server.watches[1] == str(server.version)
            assert server.lists == 1
            server.put("b")
            await follower.until(lambda: follower.names() == {"a", "b"})


async def test_the_start_of_a_watch_is_a_response() -> None:
    """A resource without events is not stale: its watches end and start again."""
    async with FakeApi() as server:
        server.put("a")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            follower.informer.last_contact -= 1000
            assert follower.informer.staleness > 900
            server.hang_up()
            await follower.until(lambda: follower.informer.staleness < 900)
            assert server.lists == 1


async def test_a_deletion_between_two_watches_is_reported() -> None:
    async with FakeApi() as server:
        for name in "abc":
            server.put(name)
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            server.remove("a", silently=True)
            server.remove("b", silently=True)
            server.put("d", silently=True)
            server.expire()
            await follower.until(lambda: follower.names() == {"c", "d"})
            assert (("a", ""), None) in follower.changes
            assert follower.informer.staleness < 5


async def test_a_recreated_object_is_another_one() -> None:
    async with FakeApi() as server:
        server.put("a", job="old")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            server.remove("a", silently=True)
            server.put("a", silently=True, job="new")
            server.objects["a"]["metadata"]["uid"] = "another"
            server.expire()
            await follower.until(lambda: bool(follower.informer.by_index("job", "new")))
            await follower.until(lambda: follower.informer.get("uid-a") is None)
            assert follower.replay() == {("a", "new")}


GARBAGE = (b"not json\n", b'{"type": "ADDED"}\n', b'{"type":"ADDED","object":{"metadata":{}}}\n')


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_malformed_response_does_not_end_the_informer(garbage: bytes) -> None:
    async with FakeApi() as server:
        server.put("a")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            server.put("b", silently=True)
            server.send(garbage)
            await follower.until(lambda: follower.names() == {"a", "b"})


async def test_requests_are_retried_while_the_server_is_down() -> None:
    async with FakeApi() as server:
        server.failures = [500, 429, 410, 503]
        server.put("a")
        async with followed(server) as follower:
            await follower.until(lambda: follower.informer.synced.is_set())
            assert follower.names() == {"a"}


async def test_split_and_batched_events() -> None:
    async with FakeApi() as server, followed(server) as follower:
        await follower.until(lambda: len(server.watches) == 1)
        line = (
            b'{"type":"ADDED","object":{"metadata":'
            b'{"uid":"u","name":"whole","resourceVersion":"50"}}}\n'
        )
        for start in range(0, len(line), 7):
            server.send(line[start : start + 7])
            await asyncio.sleep(0)
        server.send(b"".join(line.replace(b'"u"', b'"u%d"' % i) for i in range(100)))
        await follower.until(lambda: len(follower.informer) == 101)


async def test_objects_that_decode_to_none_are_not_cached() -> None:
    async with FakeApi() as server:
        server.put("a", ignored="yes")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            assert len(follower.informer) == 0 and follower.changes == []
            server.put("a")
            await follower.until(lambda: follower.names() == {"a"})
            server.put("a", ignored="yes")
            await follower.until(lambda: follower.names() == set())


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "remove", "put silently", "remove silently", "expire", "hang up", "bookmark"]
        ),
        st.sampled_from("abcd"),
        st.sampled_from(["j1", "j2"]),
    ),
    max_size=12,
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps)
async def test_any_history_converges(history: list[tuple[str, str, str]]) -> None:
    async with FakeApi() as server, followed(server) as follower:
        await follower.until(lambda: len(server.watches) == 1)
        for action, name, job in history:
            silently = action.endswith("silently")
            if action.startswith("put"):
                server.put(name, silently=silently, job=job)
            elif action.startswith("remove") and name in server.objects:
                server.remove(name, silently=silently)
            elif action == "expire":
                server.expire()
            elif action == "hang up":
                server.hang_up()
            elif action == "bookmark" and not any("silently" in h[0] for h in history):
                server.bookmark()
            await asyncio.sleep(0)
        server.hang_up()
        follower.informer.relist()
        truth = {(n, o["metadata"]["labels"].get("job", "")) for n, o in server.objects.items()}
        lists = server.lists

        def converged() -> bool:
            return server.lists > lists and set(follower.informer.values()) == truth

        await follower.until(converged)
        assert follower.replay() == truth
        for job in ("j1", "j2"):
            assert set(follower.informer.by_index("job", job)) == {r for r in truth if r[1] == job}


DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000


def with_deep_field(name: str, version: int, path: bytes) -> bytes:
    """Return an object with a field that no decoder that recurses can read."""
    metadata = b'{"name":"%s","uid":"uid-%s","resourceVersion":"%d"' % (
        name.encode(),
        name.encode(),
        version,
    )
    if path == b"managedFields":
        return b'{"metadata":' + metadata + b',"managedFields":[' + DEEP + b"]}}"
    return b'{"metadata":' + metadata + b'},"spec":' + DEEP + b"}"


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "watched"])
async def test_objects_that_cannot_be_read_are_skipped_one_by_one(listed: bool) -> None:
    async with FakeApi() as server:
        server.put("good", job="j1")
        bad = {b"managedFields": "managed", b"spec": "deep"}
        server.version = 100
        items = [with_deep_field(name, 50, path) for path, name in bad.items()]
        if listed:
            server.raw_items = items
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            if not listed:
                for item in items:
                    server.send(b'{"type":"ADDED","object":' + item + b"}\n")
            await follower.until(lambda: follower.names() == {"good", "managed"})
            await follower.until(lambda: follower.informer.unreadable == 1)
            server.put("later")
            await follower.until(lambda: "later" in follower.names())
            assert len(server.watches) == 1, "no object has ended the watch"
            gone = with_deep_field("deep", 200, b"spec")
            server.send(b'{"type":"DELETED","object":' + gone + b"}\n")
            await follower.until(lambda: follower.informer.unreadable == 0)
            assert follower.informer.synced.is_set()


async def test_an_object_keeps_its_last_readable_state() -> None:
    async with FakeApi() as server:
        server.put("a", job="j1")
        async with followed(server) as follower:
            await follower.until(lambda: len(server.watches) == 1)
            item = with_deep_field("a", 50, b"spec")
            server.send(b'{"type":"MODIFIED","object":' + item + b"}\n")
            await follower.until(lambda: follower.informer.unreadable == 1)
            assert follower.informer.get("uid-a") == ("a", "j1")
            server.version = 60
            server.put("a", job="j2")
            await follower.until(lambda: follower.informer.get("uid-a") == ("a", "j2"))
            assert follower.informer.unreadable == 0


async def test_errors_of_one_record_or_of_its_reaction_concern_this_object_only() -> None:
    async with FakeApi() as server, followed(server) as follower:
        react = follower.informer._on_change

        def fail(old: object, new: object) -> None:
            react(old, new)  # type: ignore[arg-type]
            raise RecursionError("by order")

        follower.informer._on_change = fail
        await follower.until(lambda: len(server.watches) == 1)
        server.put("a", job="j1")
        server.objects["b"] = {"metadata": {"uid": "uid-b", "resourceVersion": "70"}}
        server.record_transitions("ADDED", server.objects["b"])
        server.version = 80
        server.put("c")
        await follower.until(lambda: follower.names() == {"a", "c"})
        assert follower.informer.unreadable == 1
        assert len(server.watches) == 1
