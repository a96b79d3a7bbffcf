"""What a job may say about its pods reaches them, and nothing of the operator's gives way."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from llmtrain_core.api import env, labels
from llmtrain_core.placement import Request
from llmtrain_core.queueing.quota import charge_of
from llmtrain_core.topology.resources import pod_requests
from llmtrain_operator.manifests.pod import make_pod
from tests.support.operator_harness.jobs import IDENTITY, NODES, checked_job
from tests.support.paths import CORPUS

pytestmark = pytest.mark.unit

Object = dict[str, Any]


def made(**workers: Any) -> Object:
    return make_pod(checked_job(workers=workers), IDENTITY, attempt=0, index=1, nodes=NODES)


def made_from(manifest: str) -> Object:
    raw = yaml.safe_load((CORPUS / f"accepted/{manifest}.yaml").read_text())["spec"]["workers"]
    return made(**{key: value for key, value in raw.items() if key not in ("nodes", "image")})


def trainer(body: Object) -> Object:
    [container] = body["spec"]["containers"]
    assert container["name"] == env.TRAINER_CONTAINER
    return dict(container)


def variables(container: Object) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


def test_a_job_that_says_nothing_has_nothing() -> None:
    body = made()
    spec = body["spec"]
    absent = {"serviceAccountName", "imagePullSecrets", "runtimeClassName", "initContainers"}
    assert not absent & spec.keys() and "annotations" not in body["metadata"]
    assert not {"imagePullPolicy", "envFrom"} & trainer(body).keys()
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] == 30


def test_values_from_objects_and_fields() -> None:
    found = variables(trainer(made_from("env-value-from")))
    assert found["TOKEN"] == {"secretKeyRef": {"name": "hub.token", "key": "token"}}
    assert found["MAYBE"]["secretKeyRef"]["optional"] is True
    assert found["REGION"] == {"configMapKeyRef": {"name": "site", "key": "region"}}
    assert found["FIELD_3"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_variables_of_the_contract_win_over_those_of_objects() -> None:
    """Kubernetes lets `env` win over `envFrom`, so what matters must be in `env`."""
    container = trainer(made_from("env-from"))
    assert container["envFrom"] == [
        {"prefix": "AWS_", "secretRef": {"name": "bucket"}},
        {"prefix": "_x_", "configMapRef": {"name": "site", "optional": True}},
    ]
    set_by_launchers = {"RANK", "LOCAL_RANK", "LD_PRELOAD"}
    assert variables(container).keys() >= env.OWNED - set_by_launchers


def test_files_of_objects_are_read_only() -> None:
    body = made_from("volumes-of-secrets")
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    assert volumes["ssh"]["secret"] == {
        "secretName": "keys",
        "defaultMode": 256,
        "optional": True,
        "items": [
            {"key": "id_ed25519", "path": "a/.b/id"},
            {"key": "known_hosts", "path": "known_hosts", "mode": 292},
        ],
    }
    sources = volumes["all"]["projected"]["sources"]
    assert [next(iter(source)) for source in sources] == [
        "secret",
        "configMap",
        "serviceAccountToken",
        "serviceAccountToken",
    ]
    assert sources[3]["serviceAccountToken"]["expirationSeconds"] == 3600
    mounts = {mount["name"]: mount for mount in trainer(body)["volumeMounts"]}
    assert all(mounts[name]["readOnly"] for name in ("ssh", "cfg", "all"))


def test_images_are_pulled_as_the_job_says() -> None:
    body = made(
        imagePullPolicy="Always",
        imagePullSecrets=[{"name": "registry"}],
        initContainers=[{"name": "fetch", "image": "x"}],
    )
    assert body["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    containers = [*body["spec"]["initContainers"], trainer(body)]
    assert [container["imagePullPolicy"] for container in containers] == ["Always"] * 2


def test_a_token_is_mounted_only_if_the_job_asks_for_it() -> None:
    spec = made(serviceAccountName="runner")["spec"]
    assert spec["serviceAccountName"] == "runner"
    assert spec["automountServiceAccountToken"] is False
    asked = made(serviceAccountName="runner", automountServiceAccountToken=True)["spec"]
    assert asked["automountServiceAccountToken"] is True


def test_labels_of_the_operator_win() -> None:
    body = made_from("pod-metadata")
    found = body["metadata"]["labels"]
    assert found["team"] == "nlp" and found["example.com/cost-center"] == ""
    assert found[labels.JOB_UID] == IDENTITY.uid and found[labels.NODE_INDEX] == "1"
    networks = body["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"]
    assert networks == "rail-0, rail-1"


def test_runtime_class_and_grace_period() -> None:
    spec = made(runtimeClassName="nvidia", terminationGracePeriodSeconds=120)["spec"]
    assert spec["runtimeClassName"] == "nvidia" and spec["terminationGracePeriodSeconds"] == 120


def test_init_containers_have_the_volumes_and_rights_of_the_trainer() -> None:
    body = made_from("init-containers")
    fetch, check = body["spec"]["initContainers"]
    own = trainer(body)
    assert fetch["command"] == ["sh", "-c"] and fetch["args"] == ["fetch --to /v"]
    assert not {"command", "args", "envFrom", "resources"} & check.keys()
    for container in (fetch, check):
        assert container["volumeMounts"] == own["volumeMounts"]
        security = {**own["securityContext"], "readOnlyRootFilesystem": False}
        assert container["securityContext"] == security
        found = variables(container)
        assert found[env.NODE_RANK] == "1" and found[env.JOB_FILE] == env.JOB_FILE_PATH
        assert found["HOME"] == env.TMP_PATH
        assert found.keys() >= {env.POD_IP, env.NODE_NAME}
    assert variables(fetch)["T"] == {"secretKeyRef": {"name": "s", "key": "k"}}
    assert fetch["resources"]["limits"] == {"memory": "4Gi", "hugepages-2Mi": "1Gi"}
    assert "A" not in variables(own) and "A" not in variables(check)
    read_only = made(readOnlyRootFilesystem=True, initContainers=[{"name": "a", "image": "x"}])
    [first] = read_only["spec"]["initContainers"]
    assert first["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(
    "workers",
    [
        {"resources": {"limits": {"hugepages-2Mi": "5120Mi", "memory": "8Gi"}}},
        {
            "resources": {"requests": {"cpu": 2, "memory": "2Gi"}},
            "initContainers": [
                {"name": "a", "image": "x", "resources": {"requests": {"cpu": 1}}},
                {"name": "b", "image": "x", "resources": {"limits": {"cpu": 3, "memory": "1Gi"}}},
                {"name": "c", "image": "x", "resources": {"limits": {"hugepages-2Mi": "2Mi"}}},
            ],
        },
        {
            "shmSize": "3Gi",
            "initContainers": [
                {"name": "a", "image": "x", "resources": {"requests": {"memory": "9Gi"}}}
            ],
        },
    ],
)
def test_the_placement_counts_what_the_pod_requests(workers: Object) -> None:
    job = checked_job(workers=workers)
    body = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)
    assert pod_requests(body["spec"]) == Request.of(job).needs


def test_huge_pages_are_counted() -> None:
    job = checked_job(workers={"resources": {"limits": {"hugepages-2Mi": "5120Mi"}}})
    assert Request.of(job).needs["hugepages-2Mi"] == 5120 * 2**20
    body = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)
    assert charge_of(body["spec"]).amounts["requests.hugepages-2Mi"] == 5120 * 2**20
