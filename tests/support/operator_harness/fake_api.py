"""A list-and-watch server of one resource, for faults that a real API server shows only rarely.

Run as a program it floods a watcher with pod events, in a process of its own, so that its cost does
not count against the informer under test.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiohttp import web

Object = dict[str, Any]


class FakeApi:
    """Objects, their history, and faults to come."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.raw_items: list[bytes] = []
        """Objects that Python cannot encode, on the last page."""
        self.version = 1
        self.lists = 0
        self.watches: list[str] = []
        self.failures: list[int] = []
        """Status codes to answer the next requests with."""
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> FakeApi:
        app = web.Application()
        app.router.add_get("/api/v1/pods", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        assert self._runner is not None
        await self._runner.cleanup()

    def put(self, name: str, silently: bool = False, **labels: str) -> None:
        """Create or change an object; silently: without telling those who watch."""
        self.version += 1
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.objects[name] = {
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "labels": labels,
                "resourceVersion": str(self.version),
            }
        }
        if not silently:
            self.record_transitions(kind, self.objects[name])

    def remove(self, name: str, silently: bool = False) -> None:
        self.version += 1
        gone = self.objects.pop(name)
        gone["metadata"]["resourceVersion"] = str(self.version)
        if not silently:
            self.record_transitions("DELETED", gone)

    def bookmark(self) -> None:
        self.version += 10
        self.record_transitions("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def expire(self) -> None:
        self.record_transitions("ERROR", {"code": 410, "reason": "Expired", "message": "too old"})

    def record_transitions(self, kind: str, item: Object) -> None:
        self.send(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        for stream in self._streams:
            stream.put_nowait(data)

    def hang_up(self) -> None:
        for stream in self._streams:
            stream.put_nowait(None)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.failures:
            code = self.failures.pop(0)
            body = {"kind": "Status", "code": code, "message": "by order", "reason": ""}
            return web.json_response(body, status=code)
        if request.query.get("watch"):
            return await self._watch(request)
        self.lists += 1
        names = sorted(self.objects)
        start, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        more = str(start + limit) if start + limit < len(names) else ""
        metadata = json.dumps({"resourceVersion": str(self.version), "continue": more}).encode()
        items = [json.dumps(self.objects[name]).encode() for name in names[start : start + limit]]
        items += [] if more else self.raw_items
        body = b'{"metadata":' + metadata + b',"items":[' + b",".join(items) + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches.append(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._streams.add(stream)
        try:
            while (data := await stream.get()) is not None:
                await response.write(data)
        finally:
            self._streams.discard(stream)
        return response


def big_pod(index: int, version: int) -> Object:
    """Return a pod of about 6 KB, as a training pod with its managed fields is."""
    env = [{"name": f"VARIABLE_{i}", "value": f"value-{i}" * 10} for i in range(24)]
    fields = {f"f:a-field-of-the-pod-{i}": {"f:inner": {}, ".": {}} for i in range(20)}
    job = f"{index // 8:08d}-0000-0000-0000-000000000000"
    return {
        "metadata": {
            "name": f"job-0-{index}",
            "namespace": "team",
            "uid": f"uid-{index}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "llmtrain.dev/job-uid": job,
                "llmtrain.dev/job-name": "job",
                "llmtrain.dev/attempt": "0",
                "llmtrain.dev/node-index": str(index % 8),
            },
            "ownerReferences": [{"kind": "LLMTrainingJob", "uid": job, "controller": True}],
            "managedFields": [
                {"manager": "kubelet", "fieldsV1": fields},
                {"manager": "llmtrain-operator", "fieldsV1": fields},
            ],
        },
        "spec": {
            "nodeName": f"node-{index}",
            "containers": [
                {
                    "name": "trainer",
                    "image": "example.com/trainer:1",
                    "env": env,
                    "resources": {
                        "limits": {"nvidia.com/gpu": "8", "cpu": "64"},
                        "requests": {"nvidia.com/gpu": "8", "cpu": "64"},
                    },
                }
            ],
        },
        "status": {
            "phase": "Running" if version % 2 else "Pending",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if version % 3 else "False"}],
            "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
        },
    }


_NO_VERSION = 999_999_990


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


class Flood(FakeApi):
    """Serves `pods` big pods and sends `events` changes over each of three watches."""

    def __init__(self, pods: int, events: int):
        super().__init__()
        self._pods = pods
        self._events = events
        self._body = [json.dumps(big_pod(i, 10 + i)).encode() for i in range(pods)]
        # Made in advance: a server that is busy at the same time would slow the other one down.
        self._lines = [
            [_line("MODIFIED", big_pod(i, _NO_VERSION + odd)) for i in range(pods)]
            for odd in (0, 1)
        ]
        self._rounds = 0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        start, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        more = str(start + limit) if start + limit < self._pods else ""
        version = 100 + self._pods + self._rounds * self._events
        head = json.dumps({"resourceVersion": str(version), "continue": more})
        items = b",".join(self._body[start : start + limit])
        body = b'{"metadata":' + head.encode() + b',"items":[' + items + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        first = int(request.query["resourceVersion"]) + 1
        self._rounds += 1
        for start in range(0, self._events, 50):
            batch = [
                self._lines[(first + i) % 2][i % self._pods].replace(
                    b"%d" % (_NO_VERSION + (first + i) % 2), b"%d" % (first + i)
                )
                for i in range(start, min(start + 50, self._events))
            ]
            await response.write(b"".join(batch))
        if self._rounds < 3:
            error = {"code": 410, "reason": "Expired", "message": "too old"}
            await response.write(_line("ERROR", error))
        else:
            await response.write(_line("DELETED", big_pod(0, first + self._events)))
        await asyncio.sleep(3600)
        return response


async def _main(pods: int, events: int) -> None:
    async with Flood(pods, events) as server:
        print(server.url, flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
