"""What Helm prints after an installation is true for the values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmtrain_chart.helm import run_helm
from llmtrain_chart.paths import CHART
from llmtrain_core.images import OPERATOR, VERSION
from tests.support.chart.value_sets import VALUE_SETS


def notes(values: dict[str, Any], folder: Path) -> str:
    """Return the notes with their line breaks as spaces."""
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    where = ("--namespace", "llmtrain-system", "--dry-run=client", "--values", str(file))
    text = run_helm(["install", "llmtrain", str(CHART), *where])
    return " ".join(text.partition("\nNOTES:\n")[2].split())


@pytest.mark.parametrize("name", VALUE_SETS)
def test_notes_have_no_gaps(name: str, tmp_path: Path) -> None:
    text = notes(VALUE_SETS[name], tmp_path)
    assert "Uninstall: pods of running jobs keep running." in text
    assert not re.search(r"<no value>|%!|map\[| [.,:]", text), text


@pytest.mark.parametrize(
    ("values", "said", "not_said"),
    [
        ({}, ("in all namespaces", "waits for the operator", "--take-ownership"), ("no roles",)),
        ({"watchNamespaces": ["a", "b"]}, ("in the namespaces a, b",), ("all namespaces.",)),
        ({"metricsService": {"enabled": False}}, (), ("helm test",)),
        ({"replicas": 0}, ("no operator runs",), ("helm test",)),
        ({"replicas": None}, ("helm test",), ("no operator runs",)),
        ({"crds": {"install": False}}, ("not part of this release",), ("are kept", "ALL JOBS")),
        ({"crds": {"keep": False}}, ("ALL JOBS AND FABRICS",), ("are kept",)),
        ({"rbac": {"create": False}}, ("no roles",), ("admissionPolicy",)),
        ({"admissionPolicy": {"enabled": False}}, ("may create pods by them",), ()),
        ({"namespaceOverride": "other"}, ("kubectl --namespace other get pods",), ()),
        ({}, (f"{OPERATOR} names no registry", "Set image.registry"), ()),
        ({"image": {"pullPolicy": "Never"}}, (), ("names no registry",)),
        ({"image": {"registry": "localhost:5000"}}, (), ("names no registry",)),
        ({"image": {"repository": "localhost/operator"}}, (), ("names no registry",)),
        ({"image": {"repository": "r.example.com/operator"}}, (), ("names no registry",)),
        ({"image": {"repository": "operator"}}, (f"operator:{VERSION} names no registry",), ()),
        ({"global": {"imageRegistry": "r.example.com"}}, (), ("names no registry",)),
        ({"global": None}, ("names no registry",), ()),
    ],
)
def test_notes_depend_on_the_values(
    values: dict[str, Any], said: tuple[str, ...], not_said: tuple[str, ...], tmp_path: Path
) -> None:
    text = notes(values, tmp_path)
    assert [words for words in said if words not in text] == []
    assert [words for words in not_said if words in text] == []
