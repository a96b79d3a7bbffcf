"""The files of the chart are those that `make chart` writes."""

from __future__ import annotations

import yaml

from llmtrain_chart.__main__ import chart_files
from llmtrain_chart.deploy import deploy_text
from llmtrain_chart.paths import CHART, DEPLOY
from llmtrain_chart.values.operator_config import SET_BY_CHART
from llmtrain_chart.values.root import Values
from llmtrain_operator.config import Config, parse
from tests.support.chart.manifests import documents, find, kinds
from tests.support.paths import ROOT

STALE = "run: make chart"


def test_generated_files_are_current() -> None:
    for path, text in chart_files().items():
        assert path.read_text("utf-8") == text, f"{path.relative_to(ROOT)}: {STALE}"


def test_every_definition_of_the_chart_is_generated() -> None:
    folder = CHART / "templates" / "crds"
    assert set(folder.iterdir()) == {path for path in chart_files() if path.parent == folder}


def test_deploy_is_the_chart_with_its_default_values() -> None:
    assert [path.name for path in DEPLOY.iterdir()] == ["llmtrain.yaml"]
    assert (DEPLOY / "llmtrain.yaml").read_text("utf-8") == deploy_text(), STALE


def test_deploy_has_nothing_of_helm() -> None:
    text = (DEPLOY / "llmtrain.yaml").read_text("utf-8")
    assert "helm" not in text.lower().replace("charts/llmtrain", "")
    found = documents(text)
    assert {"Namespace", "CustomResourceDefinition", "ClusterRole", "Deployment"} <= kinds(found)
    assert not {"Pod", "Job"} & kinds(found)
    namespace = find(found, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_versions_of_kubernetes_that_the_chart_accepts() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["kubeVersion"] == ">=1.34.0-0"


def test_values_file_has_the_defaults_of_the_model() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert Values.model_validate(values) == Values()
    assert values == Values().model_dump(by_alias=True)


def test_config_has_the_flags_and_defaults_of_the_operator() -> None:
    config = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["config"]
    found = find(documents((DEPLOY / "llmtrain.yaml").read_text("utf-8")), "Deployment")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert len(config) + len(SET_BY_CHART) == len(Config.__dataclass_fields__)
    parsed, defaults = parse(container["args"]), parse([])
    assert parsed.lease == defaults.lease
    differs = {
        name for name in Config.__slots__ if getattr(parsed, name) != getattr(defaults, name)
    }
    assert differs <= {"identity", "lease_name", "metrics_peers"}
