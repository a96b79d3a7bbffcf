"""Convert a job object to a record that keeps what the operator reads, within bounds.

A user can store 1.5 MB in each job. Without bounds, some hundred jobs of one user fill the memory
of the operator, also while they are suspended.
"""

from __future__ import annotations

from typing import Any

import orjson

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.api.defaults import SPEC_BYTES
from llmtrain_core.api.untrusted import is_nested_deeper
from llmtrain_core.validation.problem import Problem
from llmtrain_operator.cache.job import ORPHAN, JobView, Raw, parse_time
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.manifests.gang_scheduling import KUEUE_LABELS

_PROPERTIES = [name for name, found in vars(JobView).items() if isinstance(found, property)]
SPEC_LEVELS = 32
"""Levels of a spec that is read; the API has ten."""
ANNOTATION_LENGTH = 256
_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_ANNOTATIONS = (labels.REPLACE, labels.ALLOW_OVER_MEMORY)
_FINALIZERS = (labels.FINALIZER, ORPHAN)
_CORE = ("managedBy", "suspend", "priorityClassName", "runPolicy")
"""Fields that are kept of a spec that is not read; the API bounds each of them."""


def job_record(raw: Raw) -> JobRecord:
    """Read a job."""
    spec = raw.get("spec") or {}
    if is_nested_deeper(spec, SPEC_LEVELS):
        return unreadable_job(raw, f"nested more than {SPEC_LEVELS} levels")
    size = len(orjson.dumps(spec))
    if size <= SPEC_BYTES or _was_accepted(JobView.of(raw)):
        return _record(raw, spec, None)
    text = f"{size} bytes of JSON are more than {SPEC_BYTES}"
    remedy = "make it smaller: move data to a volume or into the image"
    return _record(raw, _core(spec), Problem(Reason.TOO_LARGE, "spec", text, remedy))


def unreadable_job(raw: Raw, why: str) -> JobRecord:
    """Return the record of a job of which a part cannot be read."""
    remedy = "delete the job, or remove what is nested so deeply"
    problem = Problem(Reason.UNREADABLE, "spec", why, remedy)
    return _record(raw, _core(raw.get("spec") or {}), problem)


def _try_reads(view: JobView) -> None:
    """Read everything of a job. One that raises an error here affects no other job.

    The schema of the status bounds types and sizes, but it admits more than can be read: `5-` as
    numbers of pods, or a time with an offset of 99 hours. Raises ValueError with the field.
    """
    for name in _PROPERTIES:
        try:
            getattr(view, name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: {error!r}") from error
    for field, text in view.times:
        try:
            parse_time(text)
        except ValueError as error:
            raise ValueError(f"status.{field}: {error}") from error
    placement = view.stored_placement or {"gpusPerNode": 0}
    _ = int(placement["gpusPerNode"]), int(placement.get("priority") or 0)
    parse_time(view.creation_time)
    _ = view.may_leave(0.0), frozenset(view.held_nodes), frozenset(view.drained_nodes)
    for failure in view.failures:
        _ = failure["reason"]
    for condition in view.conditions:
        _ = condition["type"], condition["status"], condition["reason"]


def _was_accepted(view: JobView) -> bool:
    """Return True if the job holds nodes, and the operator has accepted it.

    An earlier version of the operator may have accepted more, and what it has started continues.
    Everything that can be large in a spec is immutable.
    """
    is_placed = view.placement is not None and not view.is_finished
    return is_placed and view.is_true(ConditionType.ACCEPTED)


def _core(spec: Raw) -> Raw:
    core = {key: spec[key] for key in _CORE if key in spec}
    return {} if is_nested_deeper(core, SPEC_LEVELS) else core


def _record(raw: Raw, spec: Raw, problem: Problem | None) -> JobRecord:
    _try_reads(JobView.of({**raw, "spec": spec}))
    found = raw["metadata"]
    metadata: dict[str, Any] = {key: found[key] for key in _METADATA if key in found}
    if kept := _chosen(found.get("labels"), KUEUE_LABELS):
        metadata["labels"] = kept
    if kept := _chosen(found.get("annotations"), _ANNOTATIONS):
        metadata["annotations"] = kept
    finalizers = found.get("finalizers") or ()
    if kept_finalizers := [name for name in _FINALIZERS if name in finalizers]:
        metadata["finalizers"] = kept_finalizers
    return JobRecord(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=int(metadata["resourceVersion"]),
        raw={"metadata": metadata, "spec": spec, "status": raw.get("status") or {}},
        problem=problem,
    )


def _chosen(found: Raw | None, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: found[key][:ANNOTATION_LENGTH] for key in keys if key in found} if found else {}
