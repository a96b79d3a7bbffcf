"""Statuses, removals and events get through an API server that fails some requests."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.kubelet import pod_status
from llmtrain_devcluster.kubelet.pod_status import remove_pod, write_status
from llmtrain_devcluster.process_node import reporter
from llmtrain_devcluster.process_node.reporter import Reporter

pytestmark = pytest.mark.cluster
TROUBLE = (
    ApiStatusError(429, "TooManyRequests", "please try again later"),
    TimeoutError(),
    aiohttp.ServerDisconnectedError(),
    ConnectionResetError(),
)


class Shaky:
    """A real client; its next requests end with these errors first."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch):
        self.errors: list[Exception] = []
        self._request = api.request
        monkeypatch.setattr(api, "request", self.request)

    async def request(self, *arguments: Any, **options: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return await self._request(*arguments, **options)


@pytest.fixture
async def shaky_api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    async with control_plane.client("admin") as client:
        yield client


@pytest.fixture
def shaky(shaky_api: Api, monkeypatch: pytest.MonkeyPatch) -> Shaky:
    monkeypatch.setattr(pod_status, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reporter, "REMOVE_RETRY_SECONDS", 0.01)
    return Shaky(shaky_api, monkeypatch)


async def make_pod(api: Api, namespace: str) -> dict:
    # It fits no node, so nobody plays it.
    container = {"name": "main", "image": "any/image:1"}
    spec = {"containers": [container], "nodeSelector": {"no": "node"}}
    return await api.create("pods", {"metadata": {"name": "p"}, "spec": spec}, namespace)


async def test_status_and_removal(
    api: Api, shaky_api: Api, shaky: Shaky, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = (await make_pod(api, namespace))["metadata"]
    shaky.errors = list(TROUBLE)
    assert await write_status(shaky_api, meta, {"message": "written"})
    assert (await api.get("pods", "p", namespace))["status"]["message"] == "written"
    # Another pod of that name: ours is gone, and this one stays.
    assert await remove_pod(shaky_api, {**meta, "uid": "of-another"})
    assert (await api.get("pods", "p", namespace))["metadata"]["uid"] == meta["uid"]
    shaky.errors = list(TROUBLE)
    assert await remove_pod(shaky_api, meta)
    with pytest.raises(ApiStatusError, match="not found"):
        await api.get("pods", "p", namespace)
    assert await remove_pod(shaky_api, meta)
    assert not await write_status(shaky_api, meta, {"message": "late"})
    assert capsys.readouterr().err == ""


async def test_a_process_node_never_gives_a_removal_up(
    api: Api, shaky_api: Api, shaky: Shaky, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = await make_pod(api, namespace)
    writer = Reporter(shaky_api, pod)
    shaky.errors = [TimeoutError() for _ in range(pod_status.ATTEMPTS + 1)]
    await writer.remove()
    await writer.close()
    assert not await api.list("pods", namespace)
    assert f"cannot remove pod {namespace}/p: TimeoutError()" in capsys.readouterr().err


async def test_an_event_that_fails_may_be_tried_again(
    api: Api, shaky_api: Api, shaky: Shaky, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Reporter(shaky_api, await make_pod(api, namespace))
    for error in TROUBLE:
        shaky.errors = [error]
        writer.event("FailedMount", "no such claim")
        await asyncio.gather(*writer._events)
    writer.event("FailedMount", "no such claim")
    writer.event("FailedMount", "no such claim")
    await asyncio.gather(*writer._events)
    await writer.close()
    events = await api.list("events", namespace, fields="reason=FailedMount")
    assert [event["message"] for event in events] == ["no such claim"]
    assert capsys.readouterr().err.count(f"cannot write an event of pod {namespace}/p") == 4
