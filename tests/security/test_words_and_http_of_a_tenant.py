"""A tenant whose pods say and answer hostile things: jobs of others start as usual."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from llmtrain_core.api import env
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import OperatorProcess, reporting, status_of
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import NODES, Tenants

pytestmark = pytest.mark.cluster

TEXT = "\x1b[2J\x1b]0;owned\x07\n2026-01-01 00:00:00,000 INFO llmtrain_operator forged\u202e"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENDLESS = HEAD + b"\r\n"


@functools.cache
def answers() -> dict[str, bytes]:
    """Return hostile answers by name. The bomb takes seconds, and each worker imports this file."""
    bomb = gzip.compress(bytes(512 * 1024 * 1024), 1)
    return {
        "bomb": HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb,
        "deep": HEAD + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
        "redirect": b"HTTP/1.1 302 Found\r\nLocation: /../x\r\nContent-Length: 0\r\n\r\n",
        "endless": ENDLESS,
    }


async def test_pods_that_say_their_nodes_are_lost(
    tenants: Tenants, bystanders: Bystanders, operator: OperatorProcess
) -> None:
    mallory = tenants.mallory
    words = {"error": {"reason": "NodeLost", "message": TEXT, "field": TEXT}}
    ends = PodScript(exit_after=0.2, exit_code=137, termination_message=json.dumps(words))
    tenants.nodes.script(named("lost-.*"), ends)
    jobs = [f"lost-{number}" for number in range(NODES // 2)]
    for name in jobs:
        await mallory.submit(name, failurePolicy={"maxRestarts": 1})
    for name in jobs:
        job = await mallory.phase(name, "Failed")
        assert status_of(job)["reason"] == "TooManyRestarts"
        assert {failure["reason"] for failure in status_of(job)["failures"]} == {"ExitCode"}
    await bystanders.are_unharmed("NodeLost in termination messages")
    lines = operator.log.read_text(encoding="utf-8").split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert not any(line.startswith("2026-01-01") for line in lines)


@contextlib.asynccontextmanager
async def answering(address: str, answer: bytes) -> AsyncIterator[list[int]]:
    """Answer each request at the port of a pod, and count them. An endless answer goes on."""
    requests = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            requests[0] += 1
            writer.write(answer)
            while answer == ENDLESS:
                writer.write(bytes(65536))
                await writer.drain()
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, address, env.HTTP_PORT)
    try:
        yield requests
    finally:
        server.close()


async def test_answers_of_pods_and_idle_connections(
    tenants: Tenants, bystanders: Bystanders, operator: OperatorProcess
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    async with contextlib.AsyncExitStack() as stack:
        seen: dict[str, list[int]] = {}
        for kind, answer in answers().items():
            await mallory.submit(kind, workers={"nodes": 1})
            await mallory.phase(kind, "Running")
            head = await mallory.api.get("pods", f"{kind}-0-0", mallory.namespace)
            address = head["status"]["podIP"]
            seen[kind] = await stack.enter_async_context(answering(address, answer))
        await carol.submit("honest", workers={"nodes": 1})
        await carol.phase("honest", "Running")
        head = await carol.api.get("pods", "honest-0-0", carol.namespace)
        report = {"phase": "training", "attempt": 0, "step": 7, "totalSteps": 100}
        await stack.enter_async_context(reporting(head, report))
        idle = [
            await asyncio.open_connection("127.0.0.1", port)
            for port in (operator.health_port, operator.metrics_port)
            for _ in range(500)
        ]
        await carol.job_is(
            "honest", lambda job: status_of(job).get("progress", {}).get("step") == 7
        )
        async with asyncio.timeout(60):
            while not all(count[0] for count in seen.values()):
                await asyncio.sleep(0.1)
        await bystanders.are_unharmed("hostile answers and idle connections", limit_mib=256)
        for name in answers():
            assert "step" not in status_of(await mallory.job(name)).get("progress", {})
        for _, writer in idle:
            writer.close()
