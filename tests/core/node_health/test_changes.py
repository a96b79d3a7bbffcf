"""An administrator adds, changes and switches off rows; a bad row is named."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.node_health import (
    DEFAULT_ROWS,
    HealthRow,
    HealthRowError,
    HealthTable,
    RowKind,
    Strength,
    changed_rows,
    read_changes,
)
from llmtrain_core.node_health.changes import MAX_CHANGES

pytestmark = pytest.mark.unit


def rows(*changes: dict[str, Any]) -> dict[str, HealthRow]:
    return {row.name: row for row in changed_rows(read_changes(list(changes)))}


def test_without_changes_the_table_is_as_shipped() -> None:
    assert tuple(rows().values()) == DEFAULT_ROWS


def test_a_new_row_finds_what_it_names() -> None:
    added = {
        "name": "site/burn-in",
        "label": "example.com/burn-in.*",
        "values": ["failed", "running"],
        "strength": "leave",
        "moveWithinSeconds": 60,
    }
    table = HealthTable(rows(added).values())
    labels = {"example.com/burn-in.gpu": "failed", "example.com/burn-in.nic": "passed"}
    [found] = table.findings({"metadata": {"labels": labels}}, {}, {})
    assert found.text == "site/burn-in: label example.com/burn-in.gpu=failed"
    assert found.leave and found.move_within == 60.0


def test_a_change_keeps_what_it_does_not_name() -> None:
    before = next(row for row in DEFAULT_ROWS if row.name == "aks/GPUMissing")
    after = rows({"name": "aks/GPUMissing", "strength": "leave"})["aks/GPUMissing"]
    assert after.strength == Strength.LEAVE and after.source == before.source
    assert (after.kind, after.key, after.status) == (RowKind.CONDITION, "GPUMissing", "True")
    other = {"name": "aks/GPUMissing", "condition": "GPUGone", "status": "False"}
    after = rows(other)["aks/GPUMissing"]
    assert (after.key, after.status) == ("GPUGone", "False")
    assert after.source != before.source


def test_rows_and_families_are_switched_off() -> None:
    off = rows({"name": "oke/*", "strength": "off"}, {"name": "oke/GpuXid", "strength": "avoid"})
    named = {row.name for row in HealthTable(off.values()).rows}
    assert {name for name in named if name.startswith("oke/")} == {"oke/GpuXid"}
    assert (
        len(named) == len(DEFAULT_ROWS) - sum(r.name.startswith("oke/") for r in DEFAULT_ROWS) + 1
    )
    cordons = HealthTable(rows({"name": "kubernetes/cordon", "strength": "off"}).values())
    node = {"metadata": {"name": "n"}, "spec": {"unschedulable": True}}
    assert cordons.findings(node, {}, {}) == ()


BAD: dict[str, tuple[Any, str]] = {
    "no list": ({}, "not a list of rows"),
    "no map": (["aks/GPUMissing"], "rows[0]: not a map"),
    "no name": ([{"strength": "off"}], "rows[0]: name: "),
    "no family": ([{"name": "GPUMissing", "strength": "off"}], "row GPUMissing: name: "),
    "a wrong name": ([{"name": "aks/GpuMissing", "strength": "off"}], "row aks/GpuMissing: no row"),
    "a wrong family": (
        [{"name": "aws-eks/*", "strength": "off"}],
        "no such family; there are aks,",
    ),
    "a family with a key": (
        [{"name": "aks/*", "status": "False"}],
        "row aks/*: status: a family has only",
    ),
    "a wrong strength": (
        [{"name": "aks/GPUMissing", "strength": "drain"}],
        "aks/GPUMissing: strength",
    ),
    "no strength": ([{"name": "a/b", "taint": "c"}], "row a/b: strength: set avoid or leave"),
    "two things": (
        [{"name": "a/b", "taint": "c", "label": "d", "strength": "avoid"}],
        "row a/b: label: a row looks at one thing",
    ),
    "a status without condition": (
        [{"name": "a/b", "taint": "c", "status": "True", "strength": "avoid"}],
        "row a/b: status: only conditions have one",
    ),
    "a status that is no text": (
        [{"name": "a/b", "condition": "c", "status": True, "strength": "avoid"}],
        "row a/b: status: ",
    ),
    "values of a condition": (
        [{"name": "a/b", "condition": "c", "values": ["d"], "strength": "avoid"}],
        "row a/b: values: only taints and labels",
    ),
    "a time without leave": (
        [{"name": "a/b", "taint": "c", "moveWithinSeconds": 5, "strength": "avoid"}],
        "row a/b: moveWithinSeconds: only jobs that leave",
    ),
    "a key for everything": (
        [{"name": "a/b", "label": "*", "strength": "avoid"}],
        "row a/b: label: '*' matches everything",
    ),
    "a key for the cordon": (
        [{"name": "kubernetes/cordon", "taint": "x"}],
        "row kubernetes/cordon: taint: this row has no key",
    ),
    "an unknown field": (
        [{"name": "a/b", "taint": "c", "strength": "avoid", "effect": "NoSchedule"}],
        "row a/b: effect: ",
    ),
    "the second of two": (
        [{"name": "aks/*", "strength": "off"}, {"name": "x/y", "strength": "off"}],
        "row x/y: no row of this name",
    ),
    "too many": ([{"name": "aks/*"}] * (MAX_CHANGES + 1), "at most"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_field(case: str) -> None:
    document, text = BAD[case]
    with pytest.raises(HealthRowError) as raised:
        read_changes(document)
    assert text in str(raised.value)
