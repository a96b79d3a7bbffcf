"""Match the rows of the node health table with a node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.node_health.default_rows import DEFAULT_ROWS
from llmtrain_core.node_health.rows import (
    CORDON_ROW,
    HealthFinding,
    HealthRow,
    RowKind,
    Strength,
)

EVIDENCE_LENGTH = 160
"""Characters of the evidence of a finding."""
CORDONED = HealthFinding(CORDON_ROW, "cordoned", leave=True, bounded=False)
"""The finding of a cordon, by the default row."""
_HARD_EFFECTS = frozenset({"NoSchedule", "NoExecute"})


class _Rows:
    """The rows of one kind, by key."""

    def __init__(self, rows: Iterable[HealthRow]):
        self._exact: dict[str, list[HealthRow]] = {}
        self._patterns: list[tuple[re.Pattern[str], HealthRow]] = []
        for row in rows:
            if "*" in row.key:
                parts = (re.escape(part) for part in row.key.split("*"))
                self._patterns.append((re.compile(".*".join(parts), re.DOTALL), row))
            else:
                self._exact.setdefault(row.key, []).append(row)

    def of(self, key: str) -> Iterator[HealthRow]:
        """Yield the rows whose key matches."""
        yield from self._exact.get(key, ())
        for pattern, row in self._patterns:
            if pattern.fullmatch(key):
                yield row


class HealthTable:
    """The rows that are not switched off."""

    def __init__(self, rows: Iterable[HealthRow] = DEFAULT_ROWS):
        """`rows` have unique names."""
        self.rows = tuple(row for row in rows if row.strength != Strength.OFF)
        self._order = {row.name: index for index, row in enumerate(self.rows)}
        by_kind = {kind: [row for row in self.rows if row.kind == kind] for kind in RowKind}
        self._conditions = _Rows(by_kind[RowKind.CONDITION])
        self._taints = _Rows(by_kind[RowKind.TAINT])
        self._labels = _Rows(by_kind[RowKind.LABEL])
        self._resources = _Rows(by_kind[RowKind.RESOURCE])
        self._cordon = bool(by_kind[RowKind.CORDON])

    def findings(
        self,
        raw: Mapping[str, Any],
        capacity: Mapping[str, int],
        allocatable: Mapping[str, int],
    ) -> tuple[HealthFinding, ...]:
        """Return what the table finds on a Node object, those that jobs leave first.

        `capacity` and `allocatable` are the node's amounts by resource.
        """
        spec, status = raw.get("spec") or {}, raw.get("status") or {}
        found = [
            *([CORDONED] if self._cordon and spec.get("unschedulable") else ()),
            *self._of_conditions(status.get("conditions") or ()),
            *self._of_taints(spec.get("taints") or ()),
            *self._of_labels(raw["metadata"].get("labels") or {}),
            *self._of_resources(capacity, allocatable),
        ]
        if len(found) > 1:
            found.sort(key=lambda item: (not item.leave, self._order[item.row], item.evidence))
        return tuple(found)

    def _of_conditions(self, conditions: Iterable[Mapping[str, Any]]) -> Iterator[HealthFinding]:
        for condition in conditions:
            for row in self._conditions.of(condition["type"]):
                if condition["status"] == row.status:
                    text = f"condition {condition['type']}={condition['status']}"
                    reason = condition.get("reason")
                    text += f", reason {reason}" if reason else ""
                    yield _finding(row, text, condition.get("lastTransitionTime") or "")

    def _of_taints(self, taints: Iterable[Mapping[str, Any]]) -> Iterator[HealthFinding]:
        for taint in taints:
            value, effect = taint.get("value") or "", taint["effect"]
            for row in self._taints.of(taint["key"]):
                if not row.values or value in row.values:
                    text = f"taint {taint['key']}{'=' if value else ''}{value}:{effect}"
                    yield _finding(row, text, bounded=effect not in _HARD_EFFECTS)

    def _of_labels(self, labels: Mapping[str, str]) -> Iterator[HealthFinding]:
        for key, value in labels.items():
            for row in self._labels.of(key):
                if not row.values or value in row.values:
                    yield _finding(row, f"label {key}={value}")

    def _of_resources(
        self, capacity: Mapping[str, int], allocatable: Mapping[str, int]
    ) -> Iterator[HealthFinding]:
        for name, total in capacity.items():
            left = allocatable.get(name, 0)
            if left < total:
                for row in self._resources.of(name):
                    yield _finding(row, f"{left} of {total} {name} allocatable")


def _finding(row: HealthRow, text: str, since: str = "", *, bounded: bool = True) -> HealthFinding:
    return HealthFinding(
        row.name,
        clean_text(text, EVIDENCE_LENGTH),
        row.strength == Strength.LEAVE,
        row.move_within,
        since,
        bounded,
    )


DEFAULT_TABLE = HealthTable()
