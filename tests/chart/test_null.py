"""`null` for a value is the same as an empty one, or is refused with the name of the value."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llmtrain_chart.helm import KUBE_VERSION, HelmError, Major, run_helm
from llmtrain_chart.paths import CHART
from llmtrain_chart.values_file import entries
from llmtrain_operator.config import parse
from tests.support.chart.manifests import documents, find
from tests.support.chart.value_sets import ALL_MONITORING

Key = tuple[str, ...]
KEYS = {entry.path: entry for entry in entries() if len(entry.path) <= 2}
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
EVERY_OBJECT: dict[str, Any] = {
    **ALL_MONITORING,
    "networkPolicy": {"enabled": True},
    "priorityClass": {"create": True},
}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart without its large files, which take half of the time."""
    copy = tmp_path_factory.mktemp("chart") / "llmtrain"
    large = shutil.ignore_patterns("crds", "fleet.json", "network.json", "training-job.json")
    shutil.copytree(CHART, copy, ignore=large)
    return copy


def render_without(chart: Path, keys: Iterable[Key], major: Major = 4) -> str:
    """Render all templates with `null` for these values."""
    values = {name: dict(value) for name, value in EVERY_OBJECT.items()}
    for name, *rest in keys:
        if rest:
            values.setdefault(name, {})[rest[0]] = None
        else:
            values[name] = None  # type: ignore[assignment]
    file = chart.parent / "values.json"
    file.write_text(json.dumps(values))
    where = ("--kube-version", KUBE_VERSION, "--values", str(file))
    return run_helm(["template", "llmtrain", str(chart), *where], major)


def is_required(key: Key) -> bool:
    section = SCHEMA
    for name in key[:-1]:
        section = SCHEMA["$defs"][section["properties"][name]["$ref"].rpartition("/")[2]]
    return key[-1] in section.get("required", ())


@pytest.mark.parametrize("depth", [1, 2])
def test_the_schema_names_each_value_that_has_no_empty_one(chart: Path, depth: int) -> None:
    keys = {key for key in KEYS if len(key) == depth and is_required(key)}
    with pytest.raises(HelmError) as error:
        render_without(chart, keys)
    lines = re.findall(r"^- at '/?(\w*)': missing propert(?:y|ies) (.*)$", str(error.value), re.M)
    named = {
        tuple(filter(None, (section, name)))
        for section, names in lines
        for name in re.findall(r"'(\w+)'", names)
    }
    assert named == keys and len(keys) > 10
    with pytest.raises(HelmError, match=r"metricsPort is required|config is required"):
        render_without(chart, keys, 3)


def test_each_other_value_is_empty(chart: Path) -> None:
    """Also with a default that is not empty, such as `networkPolicy.egress`."""
    keys = [key for key in KEYS if not is_required(key)]
    assert {("global",), ("replicas",), ("networkPolicy", "egress")} <= set(keys)
    assert not [key for key in keys if isinstance(KEYS[key].default, bool | float)]
    for key in keys:
        render_without(chart, [key])


def test_all_of_them_are_empty_at_once(chart: Path) -> None:
    for depth in (1, 2):
        keys = [key for key in KEYS if len(key) == depth and not is_required(key)]
        objects = documents(render_without(chart, keys))
        pod = find(objects, "Deployment")["spec"]["template"]["spec"]
        assert ("nodeSelector" in pod) is (depth == 2)
    policy = find(objects, "NetworkPolicy", "llmtrain-operator")["spec"]
    assert (policy["ingress"], policy["egress"]) == ([], [])
    (operator,) = parse(pod["containers"][0]["args"]).metrics_peers
    assert operator["podSelector"]
