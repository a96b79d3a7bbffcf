"""What the values do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain_chart.helm import render, run_helm
from llmtrain_chart.paths import CHART
from llmtrain_core.api import labels
from llmtrain_operator.config import parse
from tests.support.chart.manifests import Object, documents, find, kinds
from tests.support.chart.rendering import rendered_set
from tests.support.chart.value_sets import LONG_NAMESPACE, VALUE_SETS, WATCHED

RULES = """
groups:
- name: jobs
  rules:
  - {record: "llmtrain:steps:rate5m", expr: "rate(llmtrain_step[5m])"}
  - alert: StepStalled
    expr: time() - llmtrain_last_step_timestamp_seconds > 600
    for: 5m
    labels: {severity: critical}
    annotations: {summary: "{{ $labels.llmtrain_job }} has stalled"}
  - alert: GpuIdle
    expr: llmtrain_gpu_utilization_ratio < 0.3
- name: operator
  rules:
  - {alert: OperatorDown, expr: absent(llmtrain_operator_leader), labels: {severity: critical}}
"""


def rendered(**values: Any) -> list[Object]:
    return documents(render(values))


def operator_pod(objects: list[Object], name: str = "") -> Object:
    spec: Object = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def image(**values: Any) -> str:
    return str(operator_pod(rendered(**values))["containers"][0]["image"])


def rights(role: Object) -> set[tuple[str, str]]:
    return {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def test_images() -> None:
    digest = "sha256:" + "a" * 64
    assert image() == "llmtrain/operator:0.1.0"
    assert image(image={"tag": "v2"}) == "llmtrain/operator:v2"
    assert image(image={"tag": "v2", "digest": digest}) == f"llmtrain/operator@{digest}"
    assert image(image={"registry": "r.example.com"}) == "r.example.com/llmtrain/operator:0.1.0"
    both = {"image": {"registry": "r.example.com"}, "global": {"imageRegistry": "m.example.com/x"}}
    assert image(**both) == "m.example.com/x/llmtrain/operator:0.1.0"


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


def test_with_namespaces_no_right_to_write_elsewhere() -> None:
    whole = rendered()
    objects = rendered(watchNamespaces=["team-a"])
    everywhere = rights(find(objects, "ClusterRole", "llmtrain-operator"))
    assert {verb for verb, _ in everywhere} == {"list", "watch"}
    role = [o for o in objects if o["kind"] == "Role" and o["metadata"]["namespace"] == "team-a"]
    there = [o for o in role if o["metadata"]["name"] == "llmtrain-operator"]
    cluster = rights(find(whole, "ClusterRole", "llmtrain-operator"))
    assert everywhere | rights(there[0]) == cluster
    fewer = rendered(watchNamespaces=["team-a"], config={"countForeignPods": False})
    assert not any(
        "pods" in right for right in rights(find(fewer, "ClusterRole", "llmtrain-operator"))
    )


def test_rights_are_few() -> None:
    for name in VALUE_SETS:
        for role in rendered_set(name):
            if role["kind"] in ("Role", "ClusterRole"):
                for verb, resource in rights(role):
                    assert "*" not in verb + resource
                    assert resource not in ("secrets", "pods/exec", "roles", "clusterroles")


def test_pod_groups_need_rights() -> None:
    wanted = {("get", "podgroups"), ("create", "podgroups")}
    assert not wanted & rights(find(rendered(), "ClusterRole", "llmtrain-operator"))
    more = find(rendered(config={"podGroups": True}), "ClusterRole", "llmtrain-operator")
    assert wanted <= rights(more)


def test_roles_of_users_are_aggregated() -> None:
    objects = rendered()
    for kind in ("view", "edit", "admin"):
        role = find(objects, "ClusterRole", f"llmtrain-{kind}")
        label = f"rbac.authorization.k8s.io/aggregate-to-{kind}"
        assert role["metadata"]["labels"][label] == "true"
    writes = {verb for verb, _ in rights(find(objects, "ClusterRole", "llmtrain-view"))}
    assert writes == {"get", "list", "watch"}
    none = rendered(rbac={"create": False, "aggregateClusterRoles": False})
    assert not {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} & kinds(none)


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


def test_labels_of_pods_reach_the_series() -> None:
    (endpoint,) = find(rendered(podMonitor={"enabled": True}), "PodMonitor")["spec"][
        "podMetricsEndpoints"
    ]
    # What a pod exports is untrusted: it must not pass for another job or node.
    assert endpoint["honorLabels"] is False
    copied = {r.get("targetLabel"): r["sourceLabels"][0] for r in endpoint["relabelings"][:-1]}
    prefix = "__meta_kubernetes_pod_label_"

    def discovered(label: str) -> str:
        return prefix + label.translate(str.maketrans("./-", "___"))

    assert copied == {
        "llmtrain_job": discovered(labels.JOB_NAME),
        "attempt": discovered(labels.ATTEMPT),
        "node": "__meta_kubernetes_pod_node_name",
    }
    assert endpoint["relabelings"][-1] == {
        "action": "labelmap",
        "regex": discovered("llmtrain.dev/level-") + "(.+)",
        "replacement": "level_$1",
    }


def test_labels_of_the_operators_series_are_kept() -> None:
    monitor = find(rendered(serviceMonitor={"enabled": True}), "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0] == {
        "sourceLabels": ["__meta_kubernetes_pod_label_llmtrain_dev_watch_namespace"],
        "targetLabel": "watch_namespace",
    }
    service = find(rendered(), "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_pods_of_all_jobs_are_scraped() -> None:
    spec = find(rendered(podMonitor={"enabled": True}), "PodMonitor")["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    (expression,) = spec["selector"]["matchExpressions"]
    assert expression == {"key": labels.JOB_NAME, "operator": "Exists"}
    some = rendered(podMonitor={"enabled": True}, watchNamespaces=["team-a"])
    assert find(some, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart with three alerts and one dashboard."""
    copy = tmp_path_factory.mktemp("chart") / "llmtrain"
    shutil.copytree(CHART, copy)
    for folder, name, text in (
        ("rules", "jobs.yaml", RULES),
        ("dashboards", "job.json", '{"title": "Job <{{x}}>", "legend": "{{ job }}"}'),
    ):
        shutil.rmtree(copy / "files" / folder, ignore_errors=True)
        (copy / "files" / folder).mkdir()
        (copy / "files" / folder / name).write_text(text)
    return copy


def from_chart(chart: Path, values: dict[str, Any], folder: Path) -> list[Object]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return documents(run_helm(["template", "llmtrain", str(chart), "--values", str(file)]))


def alerts(objects: list[Object]) -> dict[str, Object]:
    groups = find(objects, "PrometheusRule")["spec"]["groups"]
    return {r["alert"]: r for group in groups for r in group["rules"] if "alert" in r}


def test_rules_are_those_of_the_files(chart: Path, tmp_path: Path) -> None:
    objects = from_chart(chart, {"prometheusRule": {"enabled": True}}, tmp_path)
    assert find(objects, "PrometheusRule")["spec"] == documents(RULES)[0]


def test_rules_are_disabled_and_changed_by_name(chart: Path, tmp_path: Path) -> None:
    values = {
        "enabled": True,
        "disabled": {"OperatorDown": True, "GpuIdle": False},
        "customRules": {"StepStalled": {"for": "1h", "severity": "info", "expr": "vector(1) > 0"}},
        "additionalRuleLabels": {"team": "platform"},
        "keepFiringFor": "10m",
        "runbookUrl": "https://example.com/runbooks/",
    }
    objects = from_chart(chart, {"prometheusRule": values}, tmp_path)
    found = alerts(objects)
    assert set(found) == {"StepStalled", "GpuIdle"}
    assert found["StepStalled"] == {
        "alert": "StepStalled",
        "expr": "vector(1) > 0",
        "for": "1h",
        "keep_firing_for": "10m",
        "labels": {"severity": "info", "team": "platform"},
        "annotations": {
            "summary": "{{ $labels.llmtrain_job }} has stalled",
            "runbook_url": "https://example.com/runbooks/StepStalled",
        },
    }
    assert found["GpuIdle"]["labels"] == {"team": "platform"}
    names = [group["name"] for group in find(objects, "PrometheusRule")["spec"]["groups"]]
    assert names == ["jobs"]


def test_the_address_of_a_runbook_has_the_name_anywhere() -> None:
    found = alerts(rendered_set("rules of one alert"))["LLMTrainStepStalled"]
    assert found["annotations"]["runbook_url"] == "https://example.com/LLMTrainStepStalled.md"
    assert found["for"] == "1d"


def test_alerts_name_no_runbook_that_nobody_serves() -> None:
    found = alerts(rendered_set("all monitoring"))
    assert len(found) > 30
    assert not [name for name, rule in found.items() if "runbook_url" in rule["annotations"]]


def test_each_watched_namespace_has_a_check_of_its_operator() -> None:
    name, checks = "LLMTrainOperatorDown", "absent(llmtrain_operator_leader{})"
    one = alerts(rendered_set("all monitoring"))[name]["expr"]
    some = alerts(rendered_set("monitors of namespaces"))[name]["expr"]
    of_namespaces = [
        checks.replace("{}", f'{{watch_namespace="{namespace}"}}') for namespace in WATCHED
    ]
    assert some == one.replace(checks.replace("{}", ""), " or ".join(of_namespaces)) != one


def test_dashboards_are_the_files(chart: Path, tmp_path: Path) -> None:
    objects = from_chart(chart, {"dashboards": {"enabled": True}}, tmp_path)
    found = find(objects, "ConfigMap")
    assert found["metadata"]["name"] == "llmtrain-dashboard-job"
    assert found["metadata"]["annotations"] == {"grafana_folder": "llmtrain"}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    text = (chart / "files" / "dashboards" / "job.json").read_text()
    assert found["data"] == {"job.json": text}


def test_more_objects_are_templates() -> None:
    objects = rendered_set("more objects")
    assert find(objects, "ConfigMap")["data"] == {"image": "llmtrain/operator:0.1.0"}
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
