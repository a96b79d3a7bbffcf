"""The rights of the operator and of users, by the values."""

from __future__ import annotations

from tests.support.chart.manifests import Object, find, kinds
from tests.support.chart.rendering import rendered, rendered_set
from tests.support.chart.value_sets import VALUE_SETS


def rights(role: Object) -> set[tuple[str, str]]:
    return {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


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
    assert wanted <= rights(more) and ("delete", "podgroups") not in rights(more)
    shared = rendered(config={"podGroups": True, "deviceClaims": True})
    of_attempts = {(verb, "podgroups") for verb in ("list", "watch", "delete")}
    assert wanted | of_attempts <= rights(find(shared, "ClusterRole", "llmtrain-operator"))


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
