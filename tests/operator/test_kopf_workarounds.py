"""kopf still needs what is replaced of it; and what kopf gets instead."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any, cast

import kopf
import pytest
from kopf._cogs.clients import api, patching, scanning, watching
from kopf._cogs.structs import references
from kopf._core.actions import lifecycles
from kopf._core.engines import indexing
from kopf._core.reactor import inventory, observation, processing, queueing

from llmtrain_core.api.base import GROUP, VERSION
from llmtrain_operator import kopf_workarounds
from llmtrain_operator.cache.job_feed import JobFeed
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.handlers import configure, registry
from llmtrain_operator.kopf_workarounds import PLURAL, fed_by
from tests.support.operator_harness.harness import job_object

pytestmark = pytest.mark.unit

DEEP = "[" * 10_000 + "]" * 10_000


def test_kopf_still_decodes_with_a_decoder_that_recurses() -> None:
    """If this fails, kopf may read deep objects: see whether `fed_by` is still needed."""
    with pytest.raises(RecursionError):
        json.loads(DEEP)
    assert "yield json.loads(line" in inspect.getsource(api.stream)


def test_kopf_still_trusts_its_annotations() -> None:
    """If this fails, kopf may tolerate them: see whether it may get them."""
    annotations = {"llmtrain.dev/last-handled-configuration": "{"}
    body = kopf.Body({"metadata": {"annotations": annotations}})
    with pytest.raises(ValueError):
        kopf.AnnotationsDiffBaseStorage(prefix="llmtrain.dev").fetch(body=body)


def test_kopf_still_calls_what_is_replaced() -> None:
    assert "watching.infinite_watch(" in inspect.getsource(queueing.watcher)
    assert "scanning.scan_resources(" in inspect.getsource(observation.resource_observer)
    before = watching.infinite_watch, scanning.scan_resources
    with fed_by(JobFeed(list)):
        assert watching.infinite_watch is not before[0]
        assert scanning.scan_resources is not before[1]
    assert (watching.infinite_watch, scanning.scan_resources) == before


async def test_kopf_looks_for_jobs_until_the_api_server_lists_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Discovery follows the first answer about a new resource after some time."""
    verbs = frozenset({"list", "watch"})
    jobs = references.Resource(GROUP, VERSION, PLURAL, verbs=verbs)
    other = references.Resource("", "v1", "namespaces")
    answers = [[other], [other], [other, jobs]]

    async def scan(**_options: object) -> list[references.Resource]:
        return answers.pop(0)

    monkeypatch.setattr(scanning, "scan_resources", scan)
    monkeypatch.setattr(kopf_workarounds, "SCAN_SECONDS", 0.0)
    insights = references.Insights()
    with fed_by(JobFeed(list)):
        observer = asyncio.create_task(
            observation.resource_observer(
                settings=settings_of_the_operator(), registry=registry(), insights=insights
            )
        )
        async with asyncio.timeout(30):
            await insights.ready_resources.wait()
        observer.cancel()
    assert jobs in insights.watched_resources and not answers


def settings_of_the_operator() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    return settings


async def test_kopf_gets_jobs_without_what_their_users_can_break() -> None:
    feed = JobFeed(lambda: [record("uid", managedBy="llmtrain.dev/operator")])
    with fed_by(feed):
        watch: Any = watching.infinite_watch(settings=None, resource=None, namespace=None)  # type: ignore[arg-type]
        event = await anext(watch)
        await watch.aclose()
    assert event == {
        "type": None,
        "object": {
            "apiVersion": "llmtrain.dev/v1alpha1",
            "kind": "LLMTrainingJob",
            "metadata": {
                "name": "job",
                "namespace": "ns",
                "uid": "uid",
                "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "deletionTimestamp": "2026-01-01T00:00:01Z",
            },
            "spec": {"managedBy": "llmtrain.dev/operator"},
        },
    }


async def test_kopf_starts_loops_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers of other kinds make kopf set a finalizer, or store its state in annotations."""
    handlers: Any = registry()
    assert not handlers._spawning.get_all_handlers() and not handlers._changing.get_all_handlers()
    started: list[str] = []
    written: list[Any] = []

    class FakeController:
        def reconcile(self, uid: str) -> None:
            started.append(uid)
            if uid == "broken":
                raise AttributeError("a defect")

    async def patch_obj(**arguments: Any) -> Any:
        written.append(arguments["patch"])
        return None, None

    monkeypatch.setattr(patching, "patch_obj", patch_obj)
    settings, memo = kopf.OperatorSettings(), kopf.Memo(controller=FakeController())
    await configure(settings)
    jobs = [record("a"), record("broken"), record("foreign", managedBy="example.com/other")]
    feed = JobFeed(lambda: jobs)
    with fed_by(feed):
        watch: Any = watching.infinite_watch(settings=None, resource=None, namespace=None)  # type: ignore[arg-type]
        for _ in jobs:
            await processing.process_resource_event(
                lifecycle=lifecycles.all_at_once,
                indexers=indexing.OperatorIndexers(),
                registry=handlers,
                settings=settings,
                memories=inventory.ResourceMemories(),
                memobase=cast(Any, memo),
                resource=references.Resource(GROUP, VERSION, PLURAL, namespaced=True),
                raw_event=await anext(watch),
                event_queue=asyncio.Queue(),
            )
        await watch.aclose()
    assert started == ["a", "broken"]
    assert written == []


def record(uid: str, **spec: Any) -> JobRecord:
    """A job as an earlier version of the operator left it."""
    raw = job_object("job", "ns", **spec)
    raw["metadata"] |= {
        "uid": uid,
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "deletionTimestamp": "2026-01-01T00:00:01Z",
        "annotations": {"llmtrain.dev/replace": "{"},
        "finalizers": ["llmtrain.dev/finalizer"],
    }
    return job_record(raw)


def test_kopf_still_needs_a_finalizer_for_daemons() -> None:
    """If this fails, see whether a daemon can be the reconcile loop of a job."""
    assert "requires_finalizer=True" in inspect.getsource(kopf.daemon)
