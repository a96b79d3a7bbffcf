"""A patch reaches the pod as a strategic merge, and changes nothing that is the operator's."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from llmtrain_core.api import env
from llmtrain_core.placement import Request
from llmtrain_core.queueing.quota import charge_of
from llmtrain_core.topology.resources import pod_requests
from llmtrain_core.validation.pod_privileges import privileges
from llmtrain_operator.manifests.pod import make_pod
from llmtrain_operator.manifests.pod_patch import PodPatchError, apply_patch, strategic_merge
from tests.support.operator_harness.jobs import EVERYTHING, IDENTITY, NODES, checked_job
from tests.support.operator_harness.pod_patches import LEGITIMATE, Legitimate, sidecar

pytestmark = pytest.mark.unit

Object = dict[str, Any]


def made(**workers: Any) -> Object:
    return make_pod(checked_job(workers=workers), IDENTITY, attempt=0, index=1, nodes=NODES)


def made_of(case: Legitimate) -> Object:
    return made(**case.workers, podPatch={"spec": case.patch})


def assert_has(found: Any, expected: Any) -> None:
    """Assert that an object has all fields of another one, and lists all of its items."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, key
            assert_has(found[key], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        key = next((key for key in ("mountPath", "name", "ip") if key in expected[0]), None)
        for item in expected:
            [same] = [other for other in found if key is None or other.get(key) == item[key]]
            assert_has(same, item)
    else:
        assert found == expected


@pytest.mark.parametrize("name", LEGITIMATE)
def test_a_legitimate_patch_is_in_the_pod_and_nothing_is_lost(name: str) -> None:
    case = LEGITIMATE[name]
    plain, found = made(**case.workers), made_of(case)
    assert_has(found["spec"], case.expected)
    assert found["metadata"] == plain["metadata"]
    # The trainer has all that it had, but for the security settings that the patch names.
    [before], [after] = plain["spec"]["containers"], found["spec"]["containers"]
    same = before.keys() - {"securityContext", "volumeMounts"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert [m for m in after["volumeMounts"] if m in before["volumeMounts"]] == before[
        "volumeMounts"
    ]
    for key in plain["spec"].keys() - {"containers", "securityContext", *case.patch}:
        assert found["spec"][key] == plain["spec"][key]


@pytest.mark.parametrize("name", LEGITIMATE)
def test_the_placement_and_the_quota_count_what_a_patch_adds(name: str) -> None:
    case = LEGITIMATE[name]
    job = checked_job(workers={**case.workers, "podPatch": {"spec": case.patch}})
    spec = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)["spec"]
    assert pod_requests(spec) == Request.of(job).needs


def test_the_requests_of_sidecars_are_added() -> None:
    job = checked_job(
        workers={
            "resources": {"requests": {"cpu": 2}, "limits": {"hugepages-2Mi": "64Mi"}},
            "initContainers": [
                {"name": "fetch", "image": "x", "resources": {"requests": {"cpu": 4}}}
            ],
            "podPatch": {
                "spec": sidecar(
                    resources={"requests": {"cpu": "500m"}, "limits": {"hugepages-2Mi": "2Mi"}}
                )
            },
        }
    )
    needs = Request.of(job).needs
    assert needs["cpu"] == 4500
    assert needs["hugepages-2Mi"] == 66 * 2**20
    spec = make_pod(job, IDENTITY, attempt=0, index=0, nodes=NODES)["spec"]
    assert charge_of(spec).amounts["requests.hugepages-2Mi"] == 66 * 2**20


def test_sidecars_start_before_the_init_containers_of_the_job_in_their_order() -> None:
    second = {**sidecar()["initContainers"][0], "name": "b"}
    patch = {"initContainers": [*sidecar()["initContainers"], second]}
    found = made(initContainers=[{"name": "fetch", "image": "x"}], podPatch={"spec": patch})
    assert [item["name"] for item in found["spec"]["initContainers"]] == ["a", "b", "fetch"]


def test_a_sidecar_has_no_variables_and_no_volumes_of_the_trainer() -> None:
    found = made(
        env=[{"name": "A", "value": "1"}],
        imagePullPolicy="Always",
        readOnlyRootFilesystem=True,
        podPatch={"spec": sidecar()},
    )
    [container] = found["spec"]["initContainers"]
    assert not {"env", "envFrom", "volumeMounts"} & container.keys()
    assert container["imagePullPolicy"] == "Always"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_merge_replaces_lists_without_a_key_and_merges_maps() -> None:
    before = {
        "a": {"b": 1, "c": [1, 2]},
        "volumes": [{"name": "x", "emptyDir": {}}, {"name": "y", "emptyDir": {"sizeLimit": "1"}}],
    }
    kept = copy.deepcopy(before)
    patch = {
        "a": {"c": [3], "d": {"e": True}},
        "volumes": [{"name": "z"}, {"name": "y", "emptyDir": {"medium": "Memory"}}],
    }
    assert strategic_merge(before, patch) == {
        "a": {"b": 1, "c": [3], "d": {"e": True}},
        "volumes": [
            {"name": "z"},
            {"name": "x", "emptyDir": {}},
            {"name": "y", "emptyDir": {"sizeLimit": "1", "medium": "Memory"}},
        ],
    }
    assert before == kept


TRAINER = env.TRAINER_CONTAINER
OWNED: list[tuple[Object, str]] = [
    ({"kind": "Job"}, "kind"),
    ({"metadata": {"name": "other"}}, "metadata"),
    ({"metadata": {"labels": {"llmtrain.dev/job-uid": "x"}}}, "metadata"),
    ({"metadata": {"ownerReferences": []}}, "metadata"),
    ({"spec": {"affinity": {"nodeAffinity": {"x": 1}}}}, "spec.affinity"),
    ({"spec": {"hostname": "other"}}, "spec.hostname"),
    ({"spec": {"hostPID": True}}, "spec.hostPID"),
    ({"spec": {"tolerations": []}}, "spec.tolerations"),
    ({"spec": {"priorityClassName": "low"}}, "spec.priorityClassName"),
    ({"spec": {"serviceAccountName": "root"}}, "spec.serviceAccountName"),
    (
        {"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}},
        "spec.securityContext.seccompProfile",
    ),
    ({"spec": {"containers": [{"name": "other"}]}}, "spec.containers[other]"),
    (
        {"spec": {"containers": [{"name": TRAINER, "env": [{"name": "RANK"}]}]}},
        "spec.containers[trainer].env",
    ),
    (
        {"spec": {"containers": [{"name": TRAINER, "resources": {"limits": {"a/b": "1"}}}]}},
        "spec.containers[trainer].resources",
    ),
    (
        {
            "spec": {
                "containers": [
                    {"name": TRAINER, "securityContext": {"readOnlyRootFilesystem": True}}
                ]
            }
        },
        "spec.containers[trainer].securityContext.readOnlyRootFilesystem",
    ),
    (
        {
            "spec": {
                "containers": [
                    {"name": TRAINER, "volumeMounts": [{"name": "x", "mountPath": "/tmp"}]}
                ]
            }
        },
        "spec.containers[trainer].volumeMounts[/tmp]",
    ),
    (
        {
            "spec": {
                "containers": [
                    {"name": TRAINER, "volumeMounts": [{"name": "x", "mountPath": "/etc"}]}
                ]
            }
        },
        "spec.containers[trainer].volumeMounts[/etc].mountPath",
    ),
    (
        {
            "spec": {
                "containers": [
                    {"name": TRAINER, "volumeMounts": [{"name": "llmtrain-job", "mountPath": "/x"}]}
                ]
            }
        },
        "spec.containers[trainer].volumeMounts[/x].name",
    ),
    (
        {"spec": {"volumes": [{"name": "llmtrain-job", "emptyDir": {}}]}},
        "spec.volumes[llmtrain-job]",
    ),
    ({"spec": {"initContainers": [{"name": "x"}]}}, "spec.initContainers[x].restartPolicy"),
    (
        {
            "spec": {
                "initContainers": [
                    {
                        "name": "x",
                        "restartPolicy": "Always",
                        "resources": {"limits": {"nvidia.com/gpu": 1}},
                    }
                ]
            }
        },
        "spec.initContainers[x].resources.limits.nvidia.com/gpu",
    ),
    (
        {
            "spec": {
                "initContainers": [
                    {
                        "name": "x",
                        "restartPolicy": "Always",
                        "env": [{"name": "NVIDIA_VISIBLE_DEVICES"}],
                    }
                ]
            }
        },
        "spec.initContainers[x].env[NVIDIA_VISIBLE_DEVICES]",
    ),
]


@pytest.mark.parametrize(("patch", "path"), OWNED, ids=lambda value: str(value)[:60])
def test_the_merged_pod_is_checked_again(patch: Object, path: str) -> None:
    """No schema and no validation before it: what only the operator sets is found in the result."""
    body = make_pod(checked_job(**EVERYTHING), IDENTITY, attempt=0, index=0, nodes=NODES)
    with pytest.raises(PodPatchError) as caught:
        apply_patch(body, patch)
    assert caught.value.field == f"spec.workers.podPatch.{path}"


def test_a_patch_without_privileges_has_none() -> None:
    for case in LEGITIMATE.values():
        job = checked_job(workers={**case.workers, "podPatch": {"spec": case.patch}})
        levels = {item.level for item in privileges(job.spec.workers)}
        highest = "privileged" if "privileged" in levels else "baseline"
        assert (highest if levels else "restricted") == case.level
