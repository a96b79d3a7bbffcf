"""Who creates a job needs the rights to its pods; the operator's token creates no other pods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from llmtrain_chart.helm import HelmError, render
from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.chart.manifests import documents, kinds
from tests.support.chart.namespaces import create_namespace
from tests.support.chart.released_operator import ACCOUNT, RELEASE_USERS
from tests.support.chart.releases import Releases
from tests.support.chart.rendering import rendered_set
from tests.support.chart.verdicts import OWNER, create_pod, settled
from tests.support.operator_harness.harness import JOBS, job_object

RBAC = "rbac.authorization.k8s.io/v1"
CLASSES = "scheduling.k8s.io/v1/priorityclasses"
USERS = ("jobs-only", "pods-too", "class-too")


@pytest.fixture(scope="module")
def release_cluster() -> Iterator[ControlPlane]:
    users = {**RELEASE_USERS, **dict.fromkeys(USERS, ())}
    with ControlPlane(Options(), users=users) as cluster:
        yield cluster


@pytest.mark.unit
def test_classes_of_the_system_need_the_policy() -> None:
    with pytest.raises(HelmError, match=r"needs admissionPolicy\.enabled"):
        render({"admissionPolicy": {"enabled": False}, "config": {"systemPriorityClasses": True}})


@pytest.mark.unit
def test_the_policies_are_created_by_default() -> None:
    policies = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert policies <= kinds(rendered_set("defaults"))
    assert not policies & kinds(rendered_set("no admission policy"))


@pytest.mark.unit
def test_the_policies_name_what_the_api_server_would_add() -> None:
    """Otherwise Helm 4 cannot take over what `kubectl apply` has created."""
    found = [
        o["spec"] for o in rendered_set("defaults") if o["kind"] == "ValidatingAdmissionPolicy"
    ]
    assert len(found) >= 3
    for matched in (spec["matchConstraints"] for spec in found):
        assert {"matchPolicy", "namespaceSelector", "objectSelector"} <= set(matched)
        assert {rule["scope"] for rule in matched["resourceRules"]} == {"*"}


@pytest.mark.unit
def test_the_policy_of_jobs_is_limited_to_the_watched_namespaces() -> None:
    found = documents(render({"watchNamespaces": ["a"]}))
    bindings = [o for o in found if o["kind"] == "ValidatingAdmissionPolicyBinding"]
    limited = {o["metadata"]["name"]: "matchResources" in o["spec"] for o in bindings}
    assert limited == {"llmtrain-jobs": True, "llmtrain-pods": False, "llmtrain-objects": False}


PRIVILEGED_LABEL = "llmtrain.dev/allow-privileged-pods"


@pytest.mark.unit
def test_the_label_of_privileged_pods_counts_only_with_the_value() -> None:
    closed, open_ = (str(rendered_set(name)) for name in ("defaults", "privileged pods"))
    assert PRIVILEGED_LABEL not in closed and "variables.privileged" not in closed
    assert open_.count("variables.privileged || ") == 3


@pytest.fixture
async def policies(releases: Releases, team: str) -> AsyncIterator[Releases]:
    """A release, whose policies are in force, and users with different rights in `team`."""
    await releases.install()
    api = releases.api
    await create_namespace(api, "open")
    labels = {"llmtrain.dev/allow-service-accounts": "true"}
    await api.patch("namespaces", "open", {"metadata": {"labels": labels}})
    await api.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "high"},
            "value": 1000,
        }
    )
    jobs = {"apiGroups": ["llmtrain.dev"], "resources": ["llmtrainingjobs"], "verbs": ["*"]}
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}
    use = {
        "apiGroups": ["scheduling.k8s.io"],
        "resources": ["priorityclasses"],
        "resourceNames": ["high"],
        "verbs": ["use"],
    }
    await grant(api, "jobs-only", jobs)
    await grant(api, "pods-too", jobs, pods)
    await grant(api, "class-too", jobs, pods, use)
    yield releases
    for user in USERS:
        await api.delete(f"{RBAC}/clusterrolebindings", user)
        await api.delete(f"{RBAC}/clusterroles", user)


async def grant(api: Api, user: str, *rules: Object) -> None:
    await api.create(f"{RBAC}/clusterroles", {"metadata": {"name": user}, "rules": list(rules)})
    binding = {
        "metadata": {"name": user},
        "roleRef": {"apiGroup": RBAC.split("/")[0], "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": RBAC.split("/")[0], "kind": "User", "name": user}],
    }
    await api.create(f"{RBAC}/clusterrolebindings", binding)


def create_job(api: Api, namespace: str, **spec: Any) -> Callable[[str], Awaitable[Any]]:
    path = f"/apis/llmtrain.dev/v1alpha1/namespaces/{namespace}/llmtrainingjobs"
    body = job_object("job", namespace, **spec)
    return lambda dry_run: api.request("POST", path, query={"dryRun": dry_run}, body=body)


@pytest.mark.cluster
async def test_a_user_without_the_rights_of_a_job_creates_none(
    policies: Releases, release_cluster: ControlPlane, team: str
) -> None:
    no_pods = "you may not create pods in this namespace"
    no_class = "you may not use the PriorityClass"
    expected = {
        "jobs-only": (no_pods, no_pods, no_pods),
        "pods-too": ("", no_class, no_class),
        "class-too": ("", "", no_class),
    }
    for user, texts in expected.items():
        async with release_cluster.client(user) as api:
            for named, text in zip((None, "high", "system-node-critical"), texts, strict=True):
                spec = {} if named is None else {"priorityClassName": named}
                await settled(create_job(api, team, **spec), text)


@pytest.mark.cluster
async def test_a_change_of_a_job_needs_the_same_rights(
    policies: Releases, release_cluster: ControlPlane, team: str
) -> None:
    await policies.api.create(JOBS, job_object("kept", team, suspend=True), team)
    path = f"/apis/llmtrain.dev/v1alpha1/namespaces/{team}/llmtrainingjobs/kept"
    changes = {
        "resumes": {"spec": {"suspend": False}},
        "raises": {"spec": {"priorityClassName": "high"}},
        "labels": {"metadata": {"labels": {"a": "b"}}},
    }
    expected = {
        "jobs-only": {"resumes": "may not create pods", "raises": "may not create", "labels": ""},
        "pods-too": {"resumes": "", "raises": "may not use the PriorityClass high", "labels": ""},
        "class-too": {"resumes": "", "raises": "", "labels": ""},
    }
    for user, verdicts in expected.items():
        async with release_cluster.client(user) as api:
            for change, text in verdicts.items():
                body = changes[change]
                await settled(
                    lambda dry_run, api=api, body=body: api.request(
                        "PATCH",
                        path,
                        query={"dryRun": dry_run},
                        body=body,
                        content_type="application/merge-patch+json",
                    ),
                    text,
                )
    await policies.api.delete(JOBS, "kept", team)


CONTAINER = {"name": "main", "image": "example.com/x:1"}
POD: Object = {"containers": [CONTAINER]}
WITH_SECRET = {**POD, "volumes": [{"name": "s", "secret": {"secretName": "bootstrap-token"}}]}
PODS: dict[str, tuple[Object, list[Object], str]] = {
    "of a job": (POD, [OWNER], ""),
    "without owner": (POD, [], "whose controller is an LLMTrainingJob"),
    "not controlled": (POD, [{**OWNER, "controller": False}], "whose controller is"),
    "of another kind": (POD, [{**OWNER, "kind": "Job"}], "whose controller is"),
    "of another group": (POD, [{**OWNER, "apiVersion": "x.dev/v1"}], "whose controller is"),
    "host network": ({**POD, "hostNetwork": True}, [OWNER], "in the network of the host"),
    "host PID": ({**POD, "hostPID": True}, [OWNER], "PID and IPC namespaces"),
    "host IPC": ({**POD, "hostIPC": True}, [OWNER], "PID and IPC namespaces"),
    "host path": (
        {**POD, "volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
        [OWNER],
        "no pods with host paths",
    ),
    "privileged": (
        {"containers": [{**CONTAINER, "securityContext": {"privileged": True}}]},
        [OWNER],
        "no privileged containers",
    ),
    "privileged first": (
        {
            **POD,
            "initContainers": [
                {**CONTAINER, "name": "first", "securityContext": {"privileged": True}}
            ],
        },
        [OWNER],
        "no privileged containers",
    ),
    "a Secret": (WITH_SECRET, [OWNER], ""),
    "another account": ({**POD, "serviceAccountName": "root"}, [OWNER], "account default only"),
}


@pytest.mark.cluster
async def test_the_token_of_the_operator_creates_pods_of_jobs_only(
    policies: Releases, release_cluster: ControlPlane, team: str
) -> None:
    async with release_cluster.client(f"{ACCOUNT}operator") as api:
        for namespace in (team, "default"):
            await policies.api.wait_for(
                "serviceaccounts", "default", lambda o: o is not None, namespace
            )
            await create_account(policies.api, namespace)
            for case, (spec, owners, text) in PODS.items():
                found = await settled(create_pod(api, namespace, spec, owners), text)
                assert ("403" in found) == bool(text), case
        _, owners, _ = PODS["of a job"]
        system = create_pod(api, "kube-system", WITH_SECRET, owners)
        await settled(system, "no pods in namespaces of Kubernetes")
        await create_account(policies.api, "open")
        spec, owners, _ = PODS["another account"]
        await settled(create_pod(api, "open", spec, owners), "")


@pytest.mark.cluster
async def test_privileged_pods_need_the_value_and_the_label(
    releases: Releases, release_cluster: ControlPlane, team: str
) -> None:
    privileged = ("host network", "host path", "privileged", "privileged first")
    labels = {PRIVILEGED_LABEL: "true"}
    await create_namespace(releases.api, "labelled")
    await releases.api.patch("namespaces", "labelled", {"metadata": {"labels": labels}})
    await releases.install()
    async with release_cluster.client(f"{ACCOUNT}operator") as api:
        for case in privileged:  # the label alone permits nothing
            spec, owners, text = PODS[case]
            await settled(create_pod(api, "labelled", spec, owners), text)
        await releases.upgrade(values={"config": {"allowPrivilegedPods": True}})
        for case in PODS:
            spec, owners, text = PODS[case]
            if case in privileged:
                await settled(create_pod(api, "labelled", spec, owners), "")
                await settled(create_pod(api, team, spec, owners), f"{text}, unless an administ")
            elif case.startswith("host"):
                await settled(create_pod(api, "labelled", spec, owners), text)


@pytest.mark.cluster
async def test_the_token_of_the_operator_changes_objects_of_jobs_only(
    policies: Releases, release_cluster: ControlPlane, team: str
) -> None:
    admin, text = policies.api, "changes only objects whose controller is an LLMTrainingJob"
    job = await admin.create(JOBS, job_object("owner", team, suspend=True), team)
    # The garbage collector deletes what belongs to a job that does not exist.
    owner = {**OWNER, "name": "owner", "uid": job["metadata"]["uid"]}
    for name, owners in (("of-a-job", [owner]), ("of-others", [])):
        body = {"metadata": {"name": name, "ownerReferences": owners}}
        await admin.create("configmaps", body, team)
    async with release_cluster.client(f"{ACCOUNT}operator") as api:
        for name, expected in (("of-a-job", ""), ("of-others", text)):
            path = f"/api/v1/namespaces/{team}/configmaps/{name}"
            await settled(
                lambda dry_run, path=path: api.request(
                    "PATCH",
                    path,
                    query={"dryRun": dry_run},
                    body={"metadata": {"labels": {"a": "b"}}},
                    content_type="application/merge-patch+json",
                ),
                expected,
            )
            await settled(
                lambda dry_run, path=path: api.request("DELETE", path, query={"dryRun": dry_run}),
                expected,
            )
    for name in ("of-a-job", "of-others"):
        await admin.delete("configmaps", name, team, missing_ok=True)
    await admin.delete(JOBS, "owner", team)


async def create_account(api: Api, namespace: str) -> None:
    body = {"apiVersion": "v1", "kind": "ServiceAccount"}
    await api.apply({**body, "metadata": {"name": "root", "namespace": namespace}})
