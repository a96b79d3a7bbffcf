"""A leader is whole or not at all; and what it is told at the start must make sense."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration

from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller, watch_task
from llmtrain_operator.errors import ConfigError, UnavailableError
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.resources import NODES
from llmtrain_operator.metrics.registry import Metrics

pytestmark = pytest.mark.unit


async def _cluster(hook: Any = None) -> KubeClient:
    configuration: Configuration = type.__call__(Configuration)
    configuration.host = "http://127.0.0.1:9"
    configuration.api_key = {"BearerToken": "old"}
    configuration.refresh_api_key_hook = hook
    return KubeClient(configuration, Metrics().requests)


@pytest.mark.parametrize("broken", [True, False])
async def test_a_part_that_ends_is_reported(broken: bool) -> None:
    async def part() -> None:
        if broken:
            raise AttributeError("a defect")

    told: list[str] = []
    task = asyncio.create_task(part(), name="the part")
    watch_task(task, told.append)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert told == ["the part"]


async def test_a_part_that_is_cancelled_is_not() -> None:
    told: list[str] = []
    task = asyncio.create_task(asyncio.sleep(60), name="the part")
    watch_task(task, told.append)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert told == []


async def test_a_dead_informer_is_a_dead_runtime() -> None:
    told: list[str] = []
    cluster = await _cluster()
    runtime = Controller(parse([]), cluster, Metrics(), told.append)
    assert runtime.alive and not runtime.ready

    async def broken() -> None:
        raise AttributeError("a defect")

    runtime.informers.nodes.run = broken  # type: ignore[method-assign]
    starting = asyncio.create_task(runtime.start())
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.01)
    assert told == ["informer nodes"] and not runtime.alive
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await runtime.stop()
    assert told == ["informer nodes"], "the others were stopped, which is no surprise"
    await cluster.close()


async def test_a_token_that_cannot_be_read_is_worth_another_try() -> None:
    def hook(_: Configuration) -> None:
        raise FileNotFoundError("token")

    cluster = await _cluster(hook)
    with pytest.raises(UnavailableError) as caught:
        await cluster.list_page(NODES)
    assert caught.value.retryable and caught.value.reason == "NoCredentials"
    await cluster.close()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("COUNT_FOREIGN_PODS", "maybe", "true, yes, on"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR"),
        ("METRICS_PORT", "http", "whole number"),
        ("LEASE_DURATION", "nan", "above 0"),
        ("WRITES_PER_SECOND", "0", "above 0"),
    ],
)
def test_a_bad_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"LLMTRAIN_OPERATOR_{name}", value)
    with pytest.raises(ConfigError, match=f"LLMTRAIN_OPERATOR_{name}: .*{allowed}"):
        parse([])


def test_operators_of_different_namespaces_have_leases_of_their_own() -> None:
    assert parse([]).lease == "llmtrain-operator"
    assert parse(["--namespace=team"]).lease == "llmtrain-operator-team"
    assert parse(["--namespace=team", "--lease-name=mine"]).lease == "mine"
