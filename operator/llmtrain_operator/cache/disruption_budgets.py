"""Records of PodDisruptionBudgets: those of jobs, and those of others that select their pods."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import labels
from llmtrain_operator.cache.placement_status import level_labels
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.manifests.names import KIND, JobIdentity

_Expression = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A label selector. Without requirements it selects everything."""

    equal: tuple[tuple[str, str], ...] = ()
    expressions: tuple[_Expression, ...] = ()
    """Key, operator and values of each requirement."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> LabelSelector:
        """Read a selector that the API server has accepted."""
        expressions = raw.get("matchExpressions") or ()
        return cls(
            tuple((raw.get("matchLabels") or {}).items()),
            tuple((e["key"], e["operator"], tuple(e.get("values") or ())) for e in expressions),
        )

    def matches(self, tags: Mapping[str, str]) -> bool:
        """Return True if an object with these labels is selected."""
        return all(tags.get(key) == value for key, value in self.equal) and all(
            _holds(tags, *expression) for expression in self.expressions
        )


def _holds(tags: Mapping[str, str], key: str, operator: str, values: tuple[str, ...]) -> bool:
    if operator == "Exists":
        return key in tags
    if operator == "DoesNotExist":
        return key not in tags
    return (tags.get(key) in values) == (operator == "In")


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """A PodDisruptionBudget."""

    uid: str
    name: str
    namespace: str
    owner: str
    """UID of the job that owns it; empty for a budget of others."""
    minimum: int | None
    """`minAvailable`, if that is a number of pods."""
    selector: LabelSelector | None
    """None selects no pods."""

    def protects(self, pods: int) -> bool:
        """Return True if it is as the operator creates it for a gang of this many pods."""
        expected = LabelSelector(equal=((labels.JOB_UID, self.owner),))
        return self.minimum == pods and self.selector == expected


def budget_record(raw: Mapping[str, Any]) -> BudgetRecord:
    """Read a PodDisruptionBudget."""
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    owners = [o for o in metadata.get("ownerReferences") or () if o["kind"] == KIND]
    minimum, selector = spec.get("minAvailable"), spec.get("selector")
    return BudgetRecord(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=sys.intern(metadata["namespace"]),
        owner=next((str(owner["uid"]) for owner in owners if owner.get("controller")), ""),
        minimum=minimum if isinstance(minimum, int) else None,
        selector=None if selector is None else LabelSelector.of(selector),
    )


def covering_budget(job: JobRecord, others: Collection[BudgetRecord]) -> str:
    """Return the name of a budget of others that selects pods of a placed job, or "".

    `others` are those of its namespace. Labels that a webhook adds to the pods are not known here.
    """
    placement = job.view.placement
    if not others or placement is None:
        return ""
    identity, attempt = JobIdentity.of(job.raw), str(job.view.attempt)
    for index, levels in enumerate(level_labels(placement)):
        extra = {**levels, labels.ATTEMPT: attempt, labels.NODE_INDEX: str(index)}
        tags = identity.metadata("", **extra)["labels"]
        for found in others:
            if found.selector is not None and found.selector.matches(tags):
                return found.name
    return ""
