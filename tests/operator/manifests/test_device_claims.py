"""The templates, the ComputeDomain and the pods of a job with device claims."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api import labels
from llmtrain_core.network import NetworkRequest, NodeFacts, NodeNetwork, NoNetwork, network_of
from llmtrain_core.placement import Request
from llmtrain_core.plan.memory.node_filter import min_gpu_memory
from llmtrain_core.validation.check import Problem, check
from llmtrain_operator.manifests.device_claims import claim_resources
from llmtrain_operator.manifests.pod import make_pod
from tests.support.devices.objects import (
    GPU_CLASS,
    NIC_CLASS,
    ROOT,
    claim_of_gang,
    claims_of_workers,
)
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import IDENTITY, NODES, checked_job

pytestmark = pytest.mark.unit

PAIRS = claims_of_workers(1, nics=1, per_pod=2, aligned=True)
DOMAIN = {"computeDomain": "auto"}


def pod_of(attempt: int = 0, topology: Any = None, **workers: Any) -> Any:
    job = checked_job(workers=workers, topology=topology)
    return make_pod(job, IDENTITY, attempt, 1, NODES)


def problems(claims: Any, **workers: Any) -> list[Problem]:
    raw = job_object("job", "team", workers={"deviceClaims": claims, **workers})
    found = check("job", raw["spec"])
    return found if isinstance(found, list) else []


def test_a_template_has_what_the_job_says_and_nothing_else() -> None:
    claims = claims_of_workers(1, nics=1, per_pod=2, aligned=True)
    expression = "device.attributes['gpu.example.com'].cores >= 100"
    claims[0]["requests"][0]["selectors"] = [{"cel": {"expression": expression}}]
    job = checked_job(workers={"deviceClaims": claims})
    [(resource, body)] = claim_resources(job, IDENTITY, 3)
    assert resource.path("team") == (
        "/apis/resource.k8s.io/v1/namespaces/team/resourceclaimtemplates"
    )
    assert body["metadata"]["name"] == "job.devices"
    assert body["metadata"]["ownerReferences"] == [IDENTITY.owner()]
    exact = {"allocationMode": "ExactCount", "count": 1}
    assert body["spec"] == {
        "spec": {
            "devices": {
                "requests": [
                    {
                        "name": "gpu",
                        "exactly": {
                            "deviceClassName": GPU_CLASS,
                            **exact,
                            "selectors": [{"cel": {"expression": expression}}],
                        },
                    },
                    {"name": "nic", "exactly": {"deviceClassName": NIC_CLASS, **exact}},
                ],
                "constraints": [{"matchAttribute": ROOT}],
            }
        }
    }


def test_each_attempt_has_a_compute_domain_and_its_pods_a_claim_of_its_channel() -> None:
    job = checked_job(topology=DOMAIN)
    [(resource, body)] = claim_resources(job, IDENTITY, 3)
    assert resource.path("team", "job-3") == (
        "/apis/resource.nvidia.com/v1beta1/namespaces/team/computedomains/job-3"
    )
    assert body["metadata"]["labels"][labels.ATTEMPT] == "3"
    assert body["spec"] == {
        "numNodes": 0,
        "channel": {
            "resourceClaimTemplate": {"name": "job-3-channel"},
            "allocationMode": "Single",
        },
    }
    spec = pod_of(3, DOMAIN)["spec"]
    channel = {"name": "llmtrain-channel", "resourceClaimTemplateName": "job-3-channel"}
    assert spec["resourceClaims"] == [channel]
    resources = spec["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "llmtrain-channel"}]
    assert resources["limits"]["nvidia.com/gpu"] == "2", "the GPUs are an extended resource"


def test_a_pod_has_its_claims_and_does_not_request_the_gpus_again() -> None:
    spec = pod_of(deviceClaims=PAIRS)["spec"]
    names = ["devices-0", "devices-1"]
    assert spec["resourceClaims"] == [
        {"name": name, "resourceClaimTemplateName": "job.devices"} for name in names
    ]
    resources = spec["containers"][0]["resources"]
    assert resources["claims"] == [{"name": name} for name in names]
    assert not any("/" in name for name in {**resources["limits"], **resources["requests"]})
    assert "nvidia.com/gpu" in {each.get("key") for each in spec["tolerations"]}


def test_a_job_without_claims_has_none_of_it() -> None:
    spec = pod_of()["spec"]
    assert "resourceClaims" not in spec and "claims" not in spec["containers"][0]["resources"]
    assert claim_resources(checked_job(), IDENTITY, 0) == []


def test_a_request_counts_gpus_of_claims_as_its_gpus() -> None:
    request = Request.of(checked_job(workers={"deviceClaims": PAIRS}))
    prefix = "deviceclass.resource.kubernetes.io/"
    assert request.gpu_resource == f"{prefix}{GPU_CLASS}" and request.gpus_per_node == 2
    aligned = next(name for name in request.extra if name.endswith("]"))
    assert {name: request.needs[name] for name in request.claims} == {
        f"{prefix}{GPU_CLASS}": 2,
        f"{prefix}{NIC_CLASS}": 2,
        aligned: 2,
    }
    assert "nvidia.com/gpu" not in request.needs
    keys = {each.key for each in request.tolerations}
    assert keys == {"nvidia.com/gpu"}, "pods tolerate what the placement tolerates"


def test_whole_gpus_by_claims_have_a_plan() -> None:
    def of_class(name: str) -> int:
        claims = claims_of_workers()
        claims[0]["requests"][0]["deviceClassName"] = name
        return min_gpu_memory(checked_job(workers={"deviceClaims": claims}))

    assert of_class("gpu.nvidia.com") == min_gpu_memory(checked_job()) > 0
    assert of_class("mig.nvidia.com") == 0


def test_a_network_that_needs_a_claim_is_used_by_a_job_that_claims_devices() -> None:
    facts = NodeFacts({}, {}, frozenset({"efa.networking.k8s.aws"}))
    plain = NetworkRequest.of(checked_job(network={"profile": "efa"}))
    refused = network_of(facts, plain)
    assert isinstance(refused, NoNetwork) and "workers.deviceClaims" in refused.cause
    workers = {"deviceClaims": PAIRS}
    claimed = NetworkRequest.of(checked_job(network={"profile": "efa"}, workers=workers))
    found = network_of(facts, claimed)
    assert isinstance(found, NodeNetwork) and found.row == "dra"
    assert {item.name for item in found.settings} == {"NCCL_NET", "FI_PROVIDER"}
    only_gpus = NetworkRequest.of(checked_job(workers={"deviceClaims": claims_of_workers()}))
    auto = network_of(facts, only_gpus)
    assert isinstance(auto, NodeNetwork) and auto.row == "tcp"


def changed(**fields: Any) -> Any:
    claims = claims_of_workers(1, nics=1, per_pod=2)
    claims[0] |= fields
    return claims


def requests(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": f"r{i}", "deviceClassName": GPU_CLASS, **item} for i, item in enumerate(items)]


@pytest.mark.parametrize(
    ("claims", "reason", "field", "text"),
    [
        (changed(scope="gang"), "InvalidSpec", "[0].claimsPerPod", "is one claim"),
        (changed(scope="gang", claimsPerPod=1), "InvalidSpec", "[0].scope", "on its node"),
        (changed(name="llmtrain-channel"), "Forbidden", "[0].name", "reserved"),
        (
            changed(claimsPerPod=1, requests=requests({"count": 2, "gpus": True}, {"count": 31})),
            "InvalidSpec",
            "[0].requests",
            "33 devices, but a claim has at most 32",
        ),
        (
            changed(claimsPerPod=1),
            "InvalidSpec",
            "",
            "the claims of a pod have 1 GPUs, not 2",
        ),
        (
            changed(
                requests=[
                    *requests({"gpus": True}),
                    *[{"name": "x", "deviceClassName": "other.example.com", "gpus": True}],
                ]
            ),
            "InvalidSpec",
            "",
            "the GPUs are of several classes: gpu.example.com, other.example.com",
        ),
        (
            changed(constraints=[{"requests": ["gpu", "none"], "matchAttribute": ROOT}]),
            "InvalidSpec",
            "[0].constraints[0].requests",
            "no request 'none'",
        ),
        (
            changed(constraints=[{"requests": ["gpu"], "matchAttribute": ROOT}]),
            "InvalidSpec",
            "[0].constraints[0].requests",
            "a single device",
        ),
        (
            changed(constraints=[{"matchAttribute": ROOT}, {"matchAttribute": "a.b/numa"}]),
            "NotYetSupported",
            "[0].constraints[1].requests",
            "'gpu' is in another constraint already",
        ),
        (
            changed(
                requests=requests(
                    {"gpus": True, "selectors": [{"cel": {"expression": "device.name == 'x'"}}]}
                )
            ),
            "InvalidSpec",
            "[0].requests[0].selectors[0].cel.expression",
            "cannot evaluate it to count devices",
        ),
        (
            [
                *changed(),
                {**changed()[0], "name": "devices-1", "claimsPerPod": 1, "requests": requests({})},
            ],
            "InvalidSpec",
            "",
            "two claims of a pod would be named devices-1",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_by_field(
    claims: Any, reason: str, field: str, text: str
) -> None:
    found = problems(claims)
    assert [(each.reason, each.field) for each in found] == [
        (reason, f"spec.workers.deviceClaims{field}")
    ]
    assert text in str(found[0])


def test_a_pod_group_has_few_claims() -> None:
    claims = [claim_of_gang(name=f"c{index}") for index in range(5)]
    assert problems(claims[:4]) == []
    [found] = problems(claims)
    assert found.field == "spec.workers.deviceClaims" and "at most 4" in str(found)


def test_claims_of_the_gang_are_no_network_of_a_node() -> None:
    facts = NodeFacts({}, {}, frozenset({"efa.networking.k8s.aws"}))
    workers = {"deviceClaims": [claim_of_gang()]}
    shared = NetworkRequest.of(checked_job(network={"profile": "efa"}, workers=workers))
    assert isinstance(network_of(facts, shared), NoNetwork)


@pytest.mark.parametrize("field", ["adminAccess", "config", "tolerations", "allocationMode"])
def test_devices_of_others_and_settings_of_drivers_cannot_be_asked_for(field: str) -> None:
    claims = claims_of_workers()
    claims[0]["requests"][0][field] = True
    [found] = problems(claims)
    assert found.field == f"spec.workers.deviceClaims[0].requests[0].{field}"
    assert found.reason == "InvalidSpec" and "unknown field" in str(found)


def test_the_devices_of_a_job_are_bounded() -> None:
    def claim(number: int, **first: Any) -> Any:
        request = {"deviceClassName": "gpu.example.com"}
        requests = [{"name": f"r{i}", **request, **(first if i == 0 else {})} for i in range(2)]
        return {"name": f"c{number}", "requests": requests}

    def selecting(number: int, text: str) -> Any:
        return claim(number, selectors=[{"cel": {"expression": text}}])

    classes = [
        {
            "name": f"c{i}",
            "requests": [
                {"name": f"r{j}", "deviceClassName": f"class-{i}-{j}.example.com"} for j in range(8)
            ],
        }
        for i in range(5)
    ]
    long = [selecting(i, " && ".join([f"{i} < 9"] * 20)) for i in range(2)]
    for many, text in (
        (classes, "40 different DeviceClasses, but a job has at most 16"),
        (long, "158 different words and signs of selectors, but a job has at most 128"),
    ):
        found = problems(many)
        assert [each.field for each in found] == ["spec.workers.deviceClaims"]
        assert text in str(found[0])
    assert problems(long[:1]) == []
