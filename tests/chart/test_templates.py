"""What the values do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain_chart.helm import run_helm
from llmtrain_chart.paths import CHART
from llmtrain_core.images import OPERATOR
from llmtrain_operator.config import parse
from tests.support.chart.manifests import documents, find, kinds
from tests.support.chart.rendering import operator_pod, rendered, rendered_set
from tests.support.chart.value_sets import LONG_NAMESPACE, VALUE_SETS


def test_changes_of_the_table_of_node_health_reach_the_operator() -> None:
    rows = [
        {"name": "oke/*", "strength": "off"},
        {"name": "site/power", "condition": "PowerOk", "status": "False", "strength": "leave"},
    ]
    pod = operator_pod(rendered(config={"nodeHealth": rows}))
    found = parse(pod["containers"][0]["args"]).node_health
    assert [row.to_wire() for row in found] == rows


def image(**values: Any) -> str:
    return str(operator_pod(rendered(**values))["containers"][0]["image"])


def test_images() -> None:
    digest = "sha256:" + "a" * 64
    assert image() == OPERATOR
    assert image(image={"tag": "v2"}) == "llmtrain/operator:v2"
    assert image(image={"tag": "v2", "digest": digest}) == f"llmtrain/operator@{digest}"
    assert image(image={"registry": "r.example.com"}) == f"r.example.com/{OPERATOR}"
    both = {"image": {"registry": "r.example.com"}, "global": {"imageRegistry": "m.example.com/x"}}
    assert image(**both) == f"m.example.com/x/{OPERATOR}"


@pytest.mark.parametrize("name", ["global registry", "image by digest"])
def test_every_pod_has_the_same_image_and_pull_secrets(name: str) -> None:
    objects = rendered_set(name)
    pods = [
        find(objects, "Pod")["spec"],
        find(objects, "Deployment")["spec"]["template"]["spec"],
    ]
    for key in ("imagePullSecrets", "securityContext"):
        assert len({json.dumps(pod.get(key)) for pod in pods}) == 1
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    if name == "global registry":
        assert pods[0]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]


def test_no_pod_names_a_user_without_a_fixed_one() -> None:
    objects = rendered_set("no fixed user")
    expected = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for pod in (find(objects, "Pod")["spec"], operator_pod(objects)):
        assert pod["securityContext"] == expected
    for found, fixed in ((objects, False), (rendered(), True)):
        assert parse(operator_pod(found)["containers"][0]["args"]).fixed_user is fixed
    assert operator_pod(rendered())["securityContext"]["runAsUser"] == 65532


def test_one_deployment_lease_and_budget_for_each_namespace() -> None:
    objects = rendered(watchNamespaces=["team-a", "team-b"])
    for namespace in ("team-a", "team-b"):
        name = f"llmtrain-operator-{namespace}"
        arguments = operator_pod(objects, name)["containers"][0]["args"]
        assert {f"--namespace={namespace}", f"--lease-name={name}"} <= set(arguments)
        assert find(objects, "Lease", name)["metadata"]["namespace"] == "llmtrain-system"
        budget = find(objects, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        deployment = find(objects, "Deployment", name)["spec"]
        assert budget == deployment["selector"]["matchLabels"]
        assert budget.items() <= deployment["template"]["metadata"]["labels"].items()
        # Runbooks select Deployments and pods by it.
        for labelled in (find(objects, "Deployment", name), deployment["template"]):
            assert labelled["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    (monitored,) = (o for o in objects if o["kind"] == "Service")
    assert "llmtrain.dev/watch-namespace" not in monitored["spec"]["selector"]


def test_the_strategy_never_changes() -> None:
    strategies = {
        json.dumps(item["spec"]["strategy"])
        for name in VALUE_SETS
        for item in rendered_set(name)
        if item["kind"] == "Deployment"
    }
    assert len(strategies) == 1


def test_replicas_are_left_to_an_autoscaler() -> None:
    assert find(rendered(replicas=2), "Deployment")["spec"]["replicas"] == 2
    assert "replicas" not in find(rendered(replicas=None), "Deployment")["spec"]


def test_labels_of_users_never_replace_those_of_the_chart() -> None:
    objects = rendered_set("common labels")
    for item in objects:
        assert item["metadata"]["labels"]["example.com/team"] == "platform"
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "llmtrain"
        assert item["metadata"]["annotations"]["example.com/contact"] == "platform@example.com"
    template = find(objects, "Deployment")["spec"]["template"]["metadata"]
    assert template["labels"]["app.kubernetes.io/name"] == "llmtrain"


def test_pods_have_the_labels_that_policies_ask_for() -> None:
    objects = rendered_set("common labels")
    for pod in (find(objects, "Pod"), find(objects, "Deployment")["spec"]["template"]):
        assert pod["metadata"]["labels"]["example.com/team"] == "platform"
        assert pod["metadata"]["annotations"]["example.com/contact"] == "platform@example.com"


def test_the_test_of_a_release_has_a_network_policy() -> None:
    objects = rendered_set("network policy and common labels")
    policy = find(objects, "NetworkPolicy", "llmtrain-test")
    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= find(objects, "Pod")["metadata"]["labels"].items()
    assert "example.com/team" not in selector
    annotations = policy["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert int(annotations["helm.sh/hook-weight"]) < 0
    ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert {6443, "metrics"} <= set(ports)


def test_a_constraint_selects_the_pods_of_its_deployment() -> None:
    (own,) = operator_pod(rendered_set("scheduling"))["topologySpreadConstraints"]
    selector = find(rendered_set("scheduling"), "Deployment")["spec"]["selector"]
    assert own["labelSelector"] == selector
    assert own["topologyKey"] == "topology.kubernetes.io/zone"
    (given,) = operator_pod(rendered_set("network policy and common labels"))[
        "topologySpreadConstraints"
    ]
    assert given["labelSelector"] == {"matchLabels": {"example.com/team": "platform"}}


def test_names_are_not_too_long() -> None:
    objects = rendered_set("long names")
    name = find(objects, "Deployment")["metadata"]["name"]
    assert len(name) <= 63
    assert f"--namespace={LONG_NAMESPACE}" in operator_pod(objects)["containers"][0]["args"]
    other = rendered(**{**VALUE_SETS["long names"], "watchNamespaces": [LONG_NAMESPACE[:-1] + "x"]})
    assert find(other, "Deployment")["metadata"]["name"] != name


def test_definitions_are_kept_by_default() -> None:
    policy = "helm.sh/resource-policy"
    for keep in (True, False):
        for item in rendered(crds={"keep": keep}):
            annotations = item["metadata"].get("annotations") or {}
            kept = keep and item["kind"] == "CustomResourceDefinition"
            assert annotations.get(policy) == ("keep" if kept else None)
    assert "CustomResourceDefinition" not in kinds(rendered(crds={"install": False}))


def test_flags_of_the_operator() -> None:
    arguments = operator_pod(rendered_set("all flags"))["containers"][0]["args"]
    wanted = {"--bind=::", "--metrics-port=19090", "--count-foreign-pods=false"}
    assert wanted | {"--renew-deadline=20.5", "--log-level=DEBUG"} <= set(arguments)


@pytest.mark.parametrize("values", ["defaults", "own scrapers", "no scrapers"])
def test_the_operators_and_the_scrapers_reach_the_metrics_of_jobs(values: str) -> None:
    objects = rendered_set(values)
    deployments = [found for found in objects if found["kind"] == "Deployment"]
    given = VALUE_SETS[values].get("jobNetworkPolicy")
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    for deployment in deployments:
        template = deployment["spec"]["template"]
        operator, *scrapers = parse(template["spec"]["containers"][0]["args"]).metrics_peers
        assert scrapers == (given["scrapers"] if given else [{"namespaceSelector": monitoring}])
        where = operator["namespaceSelector"]["matchLabels"]
        assert where == {"kubernetes.io/metadata.name": deployment["metadata"]["namespace"]}
        for other in deployments:  # each of them may read the progress of a job
            labels_of_pod = other["spec"]["template"]["metadata"]["labels"]
            assert operator["podSelector"]["matchLabels"].items() <= labels_of_pod.items()


def test_more_objects_are_templates() -> None:
    objects = rendered_set("more objects")
    assert find(objects, "ConfigMap")["data"] == {"image": OPERATOR}
    assert find(objects, "Fabric")["spec"] == {"preset": "topograph"}


def test_the_chart_is_a_dependency_of_another(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "llmtrain")
    (parent / "Chart.yaml").write_text("{apiVersion: v2, name: parent, version: 1.0.0}")
    (parent / "values.yaml").write_text(
        "{global: {imageRegistry: m.example.com, other: 1}, llmtrain: {enabled: true, replicas: 2}}"
    )
    objects = documents(run_helm(["template", "ai", str(parent)]))
    assert find(objects, "Deployment")["metadata"]["name"] == "ai-llmtrain-operator"
    assert operator_pod(objects)["containers"][0]["image"].startswith("m.example.com/")


def test_helm_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in run_helm(["lint", "--strict", str(CHART)])
