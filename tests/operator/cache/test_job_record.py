"""What is kept of a job is bounded, whatever its user stores."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.api.defaults import SPEC_BYTES
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.job_record import job_record, unreadable_job
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import PLACEMENT, ago, status

pytestmark = pytest.mark.unit

METADATA = {
    "uid": "uid",
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": "2026-01-01T00:00:00Z",
}


def raw_job(size: int = 0, metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a stored job with variables of about `size` bytes in all."""
    env = [{"name": f"V{i}", "value": "x" * 1000} for i in range(size // 1000)]
    workers = {"env": env, **spec.pop("workers", {})}
    raw = job_object("job", "ns", workers=workers, **spec)
    raw["metadata"] |= METADATA | (metadata or {})
    return raw


def test_metadata_that_the_operator_does_not_read_is_dropped() -> None:
    kept = {labels.REPLACE: "1", labels.ALLOW_OVER_MEMORY: "true"}
    dropped = {
        "llmtrain.dev/last-handled-configuration": "{",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    queue = {"kueue.x-k8s.io/queue-name": "team"}
    raw = raw_job(
        metadata={
            "annotations": kept | dropped,
            "labels": queue | {"mine": "1"},
            "managedFields": [{"fieldsV1": {}}],
            "ownerReferences": [{"uid": "x"}],
            "finalizers": [labels.FINALIZER, "example.com/mine"],
            "deletionTimestamp": "2026-01-01T00:00:01Z",
        }
    )
    record = job_record(raw)
    assert record.problem is None
    assert record.view.metadata == {
        "name": "job",
        "namespace": "ns",
        **METADATA,
        "annotations": kept,
        "labels": queue,
        "finalizers": [labels.FINALIZER],
        "deletionTimestamp": "2026-01-01T00:00:01Z",
    }
    assert record.view.spec == raw["spec"]


def test_values_of_annotations_are_cut() -> None:
    raw = raw_job(metadata={"annotations": {labels.ALLOW_OVER_MEMORY: "x" * 200_000}})
    assert len(job_record(raw).view.over_memory_annotation or "") < 1000


@pytest.mark.parametrize("known", [[], [labels.FINALIZER], ["orphan"]])
def test_finalizers_of_others_are_dropped(known: list[str]) -> None:
    many = [f"example.com/{i:0200}" for i in range(1000)]
    view = job_record(raw_job(metadata={"finalizers": [*many, *known]})).view
    assert view.metadata.get("finalizers", []) == known
    assert view.has_finalizer is (known == [labels.FINALIZER])
    assert view.orphans_pods is (known == ["orphan"])


def test_a_large_spec_is_refused_and_not_kept() -> None:
    raw = raw_job(SPEC_BYTES, suspend=True, priorityClassName="high")
    record = job_record(raw)
    assert record.problem is not None and record.problem.reason == Reason.TOO_LARGE
    assert str(SPEC_BYTES) in str(record.problem) and "smaller" in str(record.problem)
    assert record.view.spec == {"suspend": True, "priorityClassName": "high"}
    assert CheckedJobs().get(record) == [record.problem]
    assert job_record(raw_job(SPEC_BYTES // 2)).problem is None


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"attempt": 1}, False),
        ({"placement": None}, False),
        ({"finished": True}, False),
        ({"accepted": False}, False),
    ],
    ids=str,
)
def test_a_large_job_that_an_earlier_version_has_started_continues(
    change: dict[str, Any], kept: bool
) -> None:
    conditions = [
        {
            "type": str(kind),
            "status": state,
            "reason": "Valid",
            "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": ago(60),
        }
        for kind, state in (
            (ConditionType.ACCEPTED, str(change.get("accepted", True))),
            (ConditionType.SUCCEEDED, str(change.get("finished", False))),
        )
    ]
    raw = raw_job(SPEC_BYTES)
    raw["status"] = {
        "conditions": conditions,
        "placement": change.get("placement", PLACEMENT),
        "attempt": change.get("attempt", PLACEMENT.get("attempt", 0)),
    }
    record = job_record(raw)
    assert (record.problem is None) == kept
    assert (record.view.spec == raw["spec"]) == kept


def test_a_spec_that_is_nested_deeply_is_unreadable() -> None:
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep}
    raw = raw_job(workers={"podPatch": deep}, suspend=True)
    raw["status"] = status()
    for record in (job_record(raw), unreadable_job(raw, "nested")):
        assert record.problem is not None and record.problem.reason == Reason.UNREADABLE
        assert record.view.spec == {"suspend": True}
        assert record.view.status == raw["status"]
    record = job_record(raw_job(suspend=deep))
    assert record.problem is not None and record.view.spec == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"attempt": "x"},
        {"placement": {"blocks": [{}]}},
        {"placement": {"gpusPerNode": None}},
        {"failures": [{}]},
        {"failures": [{"reason": "x", "time": "never"}]},
        {"move": {"attempt": 0, "deadline": "never", "nodes": []}},
        {"move": {"attempt": 0, "deadline": "2026-01-01T00:00:00Z", "nodes": [[]]}},
        {"conditions": [{}]},
        {"conditions": [{"type": "Placed", "status": "True", "reason": "x"}]},
    ],
    ids=str,
)
def test_a_status_that_loops_over_all_jobs_cannot_read_is_an_error(broken: Any) -> None:
    raw = raw_job()
    raw["status"] = broken
    with pytest.raises((KeyError, ValueError, TypeError)):
        job_record(raw)
