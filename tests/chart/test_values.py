"""Wrong values are refused, with a message that names the value."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from llmtrain_chart.helm import HelmError, Major, render
from tests.support.chart.rendering import text_of_set
from tests.support.chart.value_sets import VALUE_SETS

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown value": ({"bogus": 1}, "", "bogus"),
    "unknown value of a part": ({"image": {"name": "x"}}, "image", "name"),
    "unknown flag": ({"config": {"verbose": True}}, "config", "verbose"),
    "flag that the chart sets": ({"config": {"leaseName": "x"}}, "config", "leaseName"),
    "misspelled": ({"replica": 2}, "", "replica"),
    "text for a number": ({"replicas": "two"}, "replicas", "integer"),
    "too many replicas": ({"replicas": 100}, "replicas", "9"),
    "negative replicas": ({"replicas": -1}, "replicas", "0"),
    "text for a boolean": ({"crds": {"install": "yes"}}, "crds/install", "boolean"),
    "a port out of range": ({"config": {"metricsPort": 70000}}, "config/metricsPort", "maximum"),
    "a fraction of a port": ({"config": {"healthPort": 80.5}}, "config/healthPort", "integer"),
    "no duration": ({"config": {"leaseDuration": 0}}, "config/leaseDuration", "0"),
    "more than all nodes": (
        {"config": {"maxExcludedNodesPercent": 101}},
        "config/maxExcludedNodesPercent",
        "maximum",
    ),
    "unknown log level": ({"config": {"logLevel": "TRACE"}}, "config/logLevel", "DEBUG"),
    "a number for a tag": ({"image": {"tag": 1.10}}, "image/tag", "string"),
    "a tag with a colon": ({"image": {"tag": "a:b"}}, "image/tag", "pattern"),
    "a short digest": ({"image": {"digest": "sha256:abc"}}, "image/digest", "pattern"),
    "no repository": ({"image": {"repository": ""}}, "image/repository", "minLength"),
    "unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "image/pullPolicy", "Always"),
    "one namespace as text": ({"watchNamespaces": "team-a"}, "watchNamespaces", "array"),
    "not a namespace": ({"watchNamespaces": ["Team"]}, "watchNamespaces/0", "pattern"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "watchNamespaces", "equal"),
    "a number as label": ({"commonLabels": {"a": 1}}, "commonLabels/a", "string"),
    "rules as a map": ({"networkPolicy": {"ingress": {}}}, "networkPolicy/ingress", "array"),
    "scrapers as a map": ({"jobNetworkPolicy": {"scrapers": {}}}, "jobNetworkPolicy", "array"),
    "a scraper that selects everyone": (
        {"jobNetworkPolicy": {"scrapers": [{}]}},
        "jobNetworkPolicy/scrapers/0",
        "minProperties",
    ),
    "a misspelled scraper": (
        {"jobNetworkPolicy": {"scrapers": [{"podselector": {}}]}},
        "jobNetworkPolicy/scrapers/0",
        "podselector",
    ),
    "environment as a map": ({"extraEnv": {"A": "b"}}, "extraEnv", "array"),
    "a number as variable": ({"extraEnv": [{"name": "A", "value": 2}]}, "extraEnv/0", "string"),
    "a variable without name": ({"extraEnv": [{"value": "x"}]}, "extraEnv/0", "name"),
    "not an interval": ({"podMonitor": {"interval": "soon"}}, "podMonitor/interval", "pattern"),
    "unknown field of an alert": (
        {"prometheusRule": {"customRules": {"A": {"level": "x"}}}},
        "prometheusRule/customRules/A",
        "level",
    ),
    "a tag in the repository": ({"image": {"repository": "a/b:c"}}, "image/repository", "pattern"),
    "a registry with a scheme": (
        {"image": {"registry": "https://r.example.com"}},
        "image/registry",
        "pattern",
    ),
    "a misspelled pull secret": ({"imagePullSecrets": [{"nam": "a"}]}, "imagePullSecrets/0", "nam"),
    "no number of pods": (
        {"podDisruptionBudget": {"maxUnavailable": "half"}},
        "podDisruptionBudget/maxUnavailable",
        "pattern",
    ),
    "no key of a label": ({"podLabels": {"a b": "c"}}, "podLabels", "'a b' not allowed"),
    "no value of a label": ({"commonLabels": {"a": "b c"}}, "commonLabels/a", "pattern"),
    "no priority class": ({"priorityClassName": "High"}, "priorityClassName", "pattern"),
    "a strength that does not exist": (
        {"config": {"nodeHealth": [{"name": "aks/GPUMissing", "strength": "drain"}]}},
        "config/nodeHealth/0/strength",
        "'avoid'",
    ),
    "a registry as a list": ({"global": {"imageRegistry": []}}, "global/imageRegistry", "string"),
}
REFUSED_BY_TEMPLATES: dict[str, tuple[dict[str, Any], str]] = {
    "timing of the lease": (
        {"config": {"renewDeadline": 20}},
        "config: retryPeriod < renewDeadline < leaseDuration is required",
    ),
    "one port for both": (
        {"config": {"healthPort": 9090}},
        "config: metricsPort and healthPort must differ",
    ),
    "a variable of a flag": (
        {"extraEnv": [{"name": "LLMTRAIN_OPERATOR_LOG_LEVEL", "value": "DEBUG"}]},
        "LLMTRAIN_OPERATOR_LOG_LEVEL is set by the chart: use config.logLevel",
    ),
    "a variable of the chart itself": (
        {"extraEnv": [{"name": "LLMTRAIN_OPERATOR_LEASE_NAME", "value": "x"}]},
        "LLMTRAIN_OPERATOR_LEASE_NAME is set by the chart\n",
    ),
    "a ServiceMonitor without its Service": (
        {"serviceMonitor": {"enabled": True}, "metricsService": {"enabled": False}},
        "serviceMonitor: it selects the Service: enable metricsService",
    ),
    "two priority classes": (
        {"priorityClass": {"create": True}, "priorityClassName": "high"},
        "priorityClass: with priorityClassName, the class must not be created",
    ),
    "a variable twice": (
        {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "extraEnv: A is there twice",
    ),
    "a variable with two values": (
        {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {}}}]},
        "extraEnv: A has both value and valueFrom",
    ),
    "an unknown alert": (
        {"prometheusRule": {"enabled": True, "disabled": {"NoSuchAlert": True}}},
        "prometheusRule: there is no alert NoSuchAlert",
    ),
}


def refusal(values: dict[str, Any], major: Major) -> str:
    with pytest.raises(HelmError) as error:
        render(values, major=major)
    return str(error.value)


@pytest.mark.parametrize("name", WRONG)
def test_the_schema_refuses(name: str) -> None:
    values, path, word = WRONG[name]
    message = refusal(values, 4)
    assert f"at '{'/' if path else ''}{path}" in message, message
    assert word in message, message


@pytest.mark.parametrize("name", [*WRONG][::5])
def test_helm_3_refuses_the_same(name: str) -> None:
    values, path, _ = WRONG[name]
    assert f"- {path.replace('/', '.') or '(root)'}: " in refusal(values, 3)


@pytest.mark.parametrize("major", get_args(Major))
@pytest.mark.parametrize("name", REFUSED_BY_TEMPLATES)
def test_the_templates_refuse(name: str, major: Major) -> None:
    values, text = REFUSED_BY_TEMPLATES[name]
    assert text in refusal(values, major) + "\n"


def test_an_old_cluster_is_refused() -> None:
    with pytest.raises(HelmError, match=r"chart requires kubeVersion: >=1\.34\.0-0"):
        render({}, kube_version="1.33.9")


def test_a_version_with_a_suffix_is_accepted() -> None:
    assert render({}, kube_version="v1.34.2-gke.100")


@pytest.mark.parametrize("name", VALUE_SETS)
def test_both_versions_of_helm_render_the_same(name: str) -> None:
    helm_3, helm_4 = ([*filter(None, text_of_set(name, n).splitlines())] for n in get_args(Major))
    assert helm_3 == helm_4
