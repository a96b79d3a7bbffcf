"""Slow writes of one namespace wait for each other, and for those of no other namespace."""

from __future__ import annotations

import asyncio

import pytest

from llmtrain_operator.kube.namespace_gate import NamespaceGate

pytestmark = pytest.mark.unit


async def test_each_namespace_has_its_own_limit() -> None:
    gate, release = NamespaceGate(2), asyncio.Event()
    running: list[str] = []

    async def write(namespace: str) -> None:
        async with gate.enter(namespace):
            running.append(namespace)
            await release.wait()

    tasks = [asyncio.create_task(write(name)) for name in (*["mallory"] * 5, "bob")]
    await asyncio.sleep(0.01)
    assert sorted(running) == ["bob", "mallory", "mallory"]
    tasks[4].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(running) == ["bob", *["mallory"] * 4]
    assert len(gate) == 0
