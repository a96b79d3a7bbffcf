"""kopf still needs what is replaced of it; and what kopf gets instead."""

from __future__ import annotations

import inspect
import json
from typing import Any

import kopf
import pytest
from kopf._cogs.clients import api, patching, watching
from kopf._core.reactor import queueing

from llmtrain_operator.cache.job_feed import JobFeed
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.kopf_workarounds import NoDiffBase, NoProgress, fed_by
from tests.support.operator_harness.harness import job_object

pytestmark = pytest.mark.unit

DEEP = "[" * 10_000 + "]" * 10_000


def test_kopf_still_decodes_with_a_decoder_that_recurses() -> None:
    """If this fails, kopf may read deep objects: see whether `fed_by` is still needed."""
    with pytest.raises(RecursionError):
        json.loads(DEEP)
    assert "yield json.loads(line" in inspect.getsource(api.stream)
    assert "await response.json()" in inspect.getsource(api.patch)


def test_kopf_still_trusts_its_annotations() -> None:
    """If this fails, kopf may tolerate them: see whether `NoDiffBase` is still needed."""
    annotations = {"llmtrain.dev/last-handled-configuration": "{"}
    body = kopf.Body({"metadata": {"annotations": annotations}})
    with pytest.raises(ValueError):
        kopf.AnnotationsDiffBaseStorage(prefix="llmtrain.dev").fetch(body=body)


def test_kopf_still_calls_what_is_replaced() -> None:
    assert "watching.infinite_watch(" in inspect.getsource(queueing.watcher)
    assert "api.patch(" in inspect.getsource(patching.patch_obj)
    before = watching.infinite_watch, api.patch
    with fed_by(JobFeed(list)):
        assert watching.infinite_watch is not before[0] and api.patch is not before[1]
    assert (watching.infinite_watch, api.patch) == before


async def test_kopf_gets_jobs_without_what_their_users_can_break() -> None:
    raw = job_object("job", "ns", managedBy="llmtrain.dev/operator")
    raw["metadata"] |= {
        "uid": "uid",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"llmtrain.dev/replace": "{"},
        "finalizers": ["llmtrain.dev/finalizer"],
    }
    feed = JobFeed(lambda: [job_record(raw)])
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
                "finalizers": ["llmtrain.dev/finalizer"],
            },
            "spec": {"managedBy": "llmtrain.dev/operator"},
        },
    }


def test_nothing_is_stored_in_jobs() -> None:
    repeated: list[str] = []
    progress, diffbase = NoProgress(repeated.append), NoDiffBase()
    body = kopf.Body({"metadata": {"uid": "uid"}})
    patch = kopf.Patch()
    progress.store(key="x", record={}, body=body, patch=patch)
    progress.purge(key="x", body=body, patch=patch)
    diffbase.store(body=body, patch=patch, essence={})
    progress.touch(body=body, patch=patch, value=None)
    assert not repeated
    progress.touch(body=body, patch=patch, value="now")
    assert repeated == ["uid"]
    assert not patch
