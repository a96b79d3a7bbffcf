"""Every problem names a field and a remedy; every field of the contract is done or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_core.api.base import duration_seconds, quantity_value
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.crd import structural_schema
from llmtrain_core.api.job import JobSpec
from llmtrain_core.layout import Layout
from llmtrain_core.validation.check import NAME_LIMIT, Job, Problem, check, layout_of
from llmtrain_core.validation.presets import PRESETS
from tests.support.paths import CORPUS, EXAMPLES

pytestmark = pytest.mark.unit


IMPLEMENTED = """
suspend managedBy priorityClassName
model.{preset,initFrom}
model.architecture.{layers,hiddenSize,heads,kvHeads,headDim,ffnSize,vocabSize,sequenceLength}
model.architecture.{ropeTheta,normEpsilon,tiedEmbeddings,positions,norm,activation,biases,qkNorm}
model.architecture.ropeScaling.{factor,lowFreqFactor,highFreqFactor,originalSequenceLength}
model.architecture.{experts,expertsPerToken,loadBalancingWeight}
data.sources[].{name,uri,weight,format,filter} data.{heldOutFraction,objective} data.tokenizer.uri
data.sources[].{charset,cleaning,documents,languages,maxUnusableRows,nearDuplicates,separator}
data.sources[].similarity data.{overlong,packing,attention}
data.chat.{preset,template} training.lora.{rank,alpha,targets,merge}
training.{steps,tokens,globalBatchSize,microBatchSize,precision,seed,activationCheckpointing}
training.optimizer.{name,learningRate,beta1,beta2,epsilon,weightDecay,gradientClipNorm}
training.schedule.{warmupSteps,decay,minLearningRateRatio}
training.communication.{autotune,overlap,bucketSize,chunks}
training.gradientSync.{compression,mode,copiesPerRack} training.collectiveProbe.everySteps
training.{evaluateEverySteps,evaluateTokens,trackers}
training.gradientSync.diloco.{innerSteps,delaySteps,outerLearningRate,outerMomentum}
parallelism.{tensor,pipeline,data,context,replicate,expert,pipelineSchedule,virtualStages}
workers.{nodes,gpusPerNode,gpuResource,image,command,args,shmSize,nodeSelector}
workers.readOnlyRootFilesystem
workers.env[].{name,value} workers.resources.{requests,limits}
workers.volumes[].{name,mountPath} workers.volumes[].persistentVolumeClaim.{claimName,readOnly}
workers.volumes[].emptyDir.sizeLimit workers.volumes[].configMap.{name,optional,defaultMode}
workers.volumes[].secret.{secretName,optional,defaultMode}
workers.volumes[].secret.items[].{key,path,mode} workers.volumes[].configMap.items[].{key,path,mode}
workers.volumes[].projected.defaultMode
workers.volumes[].projected.sources[].secret.{name,optional}
workers.volumes[].projected.sources[].secret.items[].{key,path,mode}
workers.volumes[].projected.sources[].configMap.{name,optional}
workers.volumes[].projected.sources[].configMap.items[].{key,path,mode}
workers.volumes[].projected.sources[].serviceAccountToken.{audience,expirationSeconds,path}
workers.env[].valueFrom.secretKeyRef.{name,key,optional} workers.env[].valueFrom.fieldRef.fieldPath
workers.env[].valueFrom.configMapKeyRef.{name,key,optional}
workers.envFrom[].prefix
workers.envFrom[].secretRef.{name,optional} workers.envFrom[].configMapRef.{name,optional}
workers.{imagePullPolicy,serviceAccountName,automountServiceAccountToken,podLabels,podAnnotations}
workers.{runtimeClassName,terminationGracePeriodSeconds} workers.imagePullSecrets[].name
workers.initContainers[].{name,image,command,args} workers.initContainers[].env[].{name,value}
workers.initContainers[].env[].valueFrom.secretKeyRef.{name,key,optional}
workers.initContainers[].env[].valueFrom.configMapKeyRef.{name,key,optional}
workers.initContainers[].env[].valueFrom.fieldRef.fieldPath
workers.initContainers[].envFrom[].prefix
workers.initContainers[].envFrom[].secretRef.{name,optional}
workers.initContainers[].envFrom[].configMapRef.{name,optional}
workers.initContainers[].resources.{requests,limits}
workers.podPatch.spec.{hostNetwork,dnsPolicy} workers.podPatch.spec.hostAliases[].{ip,hostnames}
workers.podPatch.spec.dnsConfig.{nameservers,searches}
workers.podPatch.spec.dnsConfig.options[].{name,value}
workers.podPatch.spec.securityContext.{runAsUser,runAsGroup,runAsNonRoot,fsGroup,supplementalGroups}
workers.podPatch.spec.securityContext.sysctls[].{name,value}
workers.podPatch.spec.volumes[].name workers.podPatch.spec.volumes[].hostPath.{path,type}
workers.podPatch.spec.volumes[].emptyDir.{medium,sizeLimit}
workers.podPatch.spec.containers[].name
workers.podPatch.spec.containers[].securityContext.{runAsUser,runAsGroup,runAsNonRoot,privileged}
workers.podPatch.spec.containers[].securityContext.allowPrivilegeEscalation
workers.podPatch.spec.containers[].securityContext.capabilities.{add,drop}
workers.podPatch.spec.containers[].volumeMounts[].{name,mountPath,readOnly}
workers.podPatch.spec.initContainers[].{name,image,command,args,restartPolicy}
workers.podPatch.spec.initContainers[].env[].{name,value}
workers.podPatch.spec.initContainers[].env[].valueFrom.secretKeyRef.{name,key,optional}
workers.podPatch.spec.initContainers[].env[].valueFrom.configMapKeyRef.{name,key,optional}
workers.podPatch.spec.initContainers[].env[].valueFrom.fieldRef.fieldPath
workers.podPatch.spec.initContainers[].envFrom[].prefix
workers.podPatch.spec.initContainers[].envFrom[].secretRef.{name,optional}
workers.podPatch.spec.initContainers[].envFrom[].configMapRef.{name,optional}
workers.podPatch.spec.initContainers[].resources.{requests,limits}
workers.podPatch.spec.initContainers[].securityContext.{runAsUser,runAsGroup,runAsNonRoot}
workers.podPatch.spec.initContainers[].securityContext.{privileged,allowPrivilegeEscalation}
workers.podPatch.spec.initContainers[].securityContext.readOnlyRootFilesystem
workers.podPatch.spec.initContainers[].securityContext.capabilities.{add,drop}
workers.podPatch.spec.initContainers[].volumeMounts[].{name,mountPath,readOnly}
workers.podPatch.spec.initContainers[].startupProbe.exec.command
workers.podPatch.spec.initContainers[].startupProbe.{initialDelaySeconds,periodSeconds}
workers.podPatch.spec.initContainers[].startupProbe.{timeoutSeconds,failureThreshold}
workers.tolerations[].{key,operator,value,effect}
workers.deviceClaims[].{name,scope,claimsPerPod}
workers.deviceClaims[].requests[].{name,deviceClassName,count,gpus}
workers.deviceClaims[].requests[].selectors[].cel.{expression}
workers.deviceClaims[].constraints[].{requests,matchAttribute}
topology.{fabric,require,prefer,tensorWithin,spares,excludeNodes,computeDomain}
network.{nccl,profile} network.tuning.{candidates} network.rdma.{resource,count}
checkpoint.{uri,everySteps,keep,async,exportHuggingFace}
failurePolicy.{maxRestarts,maxRestartsInPlace,startupTimeout}
runPolicy.{ttlSecondsAfterFinished,activeDeadlineSeconds,cleanPodPolicy}
"""
"""Fields whose every value has its effect in this release. A field that is neither here nor refused
(in part, or whole) in the corpus is a promise that nobody keeps."""


def implemented() -> set[str]:
    fields: set[str] = set()
    for word in IMPLEMENTED.split():
        found = re.fullmatch(r"(.*)\{(.*)\}", word)
        fields |= {found[1] + last for last in found[2].split(",")} if found else {word}
    return fields


def refused() -> set[str]:
    """Return the fields for which the corpus has a value that is refused as not yet supported."""
    texts = [path.read_text() for path in (CORPUS / "refused").glob("later-*.yaml")]
    assert all("# reason: NotYetSupported" in text for text in texts)
    fields = {re.search(r"^# field: spec\.(\S+)", text, re.MULTILINE) for text in texts}
    return {re.sub(r"\[\d+\]", "[]", field[1]) for field in fields if field}


def leaves(node: dict[str, Any], path: str = "") -> Iterator[str]:
    if node.get("items", {}).get("properties"):
        yield from leaves(node["items"], path + "[]")
    elif node.get("properties"):
        for name, child in node["properties"].items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path


FIELDS = sorted(leaves(structural_schema(JobSpec)))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_contract_is_done_or_refused(field: str) -> None:
    is_refused = any(field == r or field.startswith((r + "[", r + ".")) for r in refused())
    assert is_refused != (field in implemented()), field


def test_the_table_names_only_fields_that_exist() -> None:
    assert implemented() <= set(FIELDS)


def spec(**sections: Any) -> dict[str, Any]:
    base = yaml.safe_load((CORPUS / "accepted/minimal.yaml").read_text())["spec"]
    return {**base, **sections}


def problems(name: str, raw: dict[str, Any]) -> list[Problem]:
    found = check(name, raw)
    assert isinstance(found, list)
    return found


def job(raw: dict[str, Any], name: str = "job") -> Job:
    found = check(name, raw)
    assert isinstance(found, Job), found
    return found


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_accepted(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "LLMTrainingJob":
            job(document["spec"], document["metadata"]["name"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * (NAME_LIMIT + 1), Reason.NAME_TOO_LONG),
        ("1job", Reason.INVALID_NAME),
        ("my.job", Reason.INVALID_NAME),
        ("job-", Reason.INVALID_NAME),
    ],
)
def test_names(name: str, reason: Reason) -> None:
    [problem] = problems(name, spec())
    assert problem.reason == reason
    assert problem.field == "metadata.name"
    assert problem.remedy.startswith("use ")


def test_the_longest_name_passes() -> None:
    assert job(spec(), "a" * NAME_LIMIT).name == "a" * NAME_LIMIT


def test_all_problems_come_at_once() -> None:
    bad = spec(
        model={"preset": "nothing"},
        workers={"nodes": 1, "image": "x", "env": [{"name": "RANK"}]},
        failurePolicy={"rules": [{"name": "a", "action": "FailJob"}]},
    )
    assert {problem.reason for problem in problems("x" * 60, bad)} == {
        Reason.NAME_TOO_LONG,
        Reason.UNKNOWN_PRESET,
        Reason.FORBIDDEN,
        Reason.NOT_YET_SUPPORTED,
    }


def test_a_job_may_set_the_detail_of_the_metrics() -> None:
    workers = {"nodes": 1, "image": "x", "env": [{"name": "LLMTRAIN_METRICS", "value": "full"}]}
    assert job(spec(workers=workers)).spec.workers.env


def test_an_unknown_preset_lists_the_known_ones() -> None:
    [problem] = problems("job", spec(model={"preset": "llama9"}))
    assert all(preset in problem.remedy for preset in PRESETS)


def test_a_misspelt_field_gets_a_suggestion() -> None:
    [problem] = problems("job", spec(parallelism={"tensr": 2}))
    assert str(problem) == "spec.parallelism.tensr: unknown field; did you mean tensor?"


def test_a_field_like_nothing_we_know_points_at_its_section() -> None:
    [problem] = problems("job", spec(parallelism={"qqqq": 2}))
    assert problem.remedy == "see kubectl explain llmtrainingjob.spec.parallelism"


@pytest.mark.parametrize(
    ("workers", "remedy"),
    [
        ({"env": [{"name": "1"}]}, "llmtrainingjob.spec.workers.env.name"),
        ({"nodeSelector": {"a": 1}}, "llmtrainingjob.spec.workers.nodeSelector"),
        (
            {"resources": {"limits": {"example.com/x": True}}},
            "llmtrainingjob.spec.workers.resources.limits",
        ),
    ],
)
def test_remedies_are_fields_that_kubectl_can_explain(workers: Any, remedy: str) -> None:
    [problem] = problems("job", spec(workers={"nodes": 1, "image": "x", **workers}))
    assert problem.remedy == f"see kubectl explain {remedy}"


@pytest.mark.parametrize(
    "raw", [{}, {"workers": None}, {"workers": []}, {"model": 1, "workers": {"image": 3}}]
)
def test_nonsense_is_a_problem_and_not_an_exception(raw: dict[str, Any]) -> None:
    assert problems("job", raw)


def test_numbers_that_are_none_are_refused() -> None:
    for number in (float("nan"), float("inf")):
        found = problems(
            "job", spec(data={"sources": [{"name": "a", "uri": "b"}], "heldOutFraction": number})
        )
        assert [problem.field for problem in found] == ["spec.data.heldOutFraction"]


def test_text_of_the_user_cannot_reach_a_terminal_raw() -> None:
    [problem] = problems("job", spec(model={"preset": "\x1b[2J" + "x" * 40}))
    assert "\x1b" not in str(problem)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_valid_architecture(preset: str) -> None:
    checked = job(spec(model={"preset": preset}))
    assert checked.architecture == PRESETS[preset]
    assert job(spec(model={"architecture": PRESETS[preset].to_wire()})).architecture is not None


def test_what_is_derived() -> None:
    derived = job(
        spec(
            parallelism={"tensor": 2, "pipeline": 2},
            workers={"nodes": 2, "gpusPerNode": 4, "image": "x"},
            training={"tokens": 8 * 128 * 10 + 1, "globalBatchSize": 8},
        )
    )
    assert derived.layout == Layout(tensor=2, pipeline=2, data=2)
    assert derived.nodes == 2
    assert derived.gpus_per_node == 4
    assert derived.total_steps == 11
    assert job(spec()).total_steps == 100


def test_nodes_follow_from_the_degrees() -> None:
    raw = spec(parallelism={"tensor": 2, "data": 12}, workers={"image": "x"})
    raw["training"] = {"steps": 1, "globalBatchSize": 24}
    assert job(raw).nodes == 3
    assert layout_of(JobSpec.from_wire(raw)).world_size == 24


def test_a_trainer_of_other_make_is_not_measured_by_ours() -> None:
    raw = {
        "workers": {"nodes": 2, "image": "x", "command": ["torchrun"]},
        "parallelism": {"context": 2, "replicate": 2, "pipelineSchedule": "DualPipeV"},
    }
    assert job(raw).total_steps == 0
    assert job({**raw, "model": {"preset": "tiny"}, "parallelism": {"tensor": 8}}).nodes == 2


def test_python_names_are_not_taken_from_a_manifest() -> None:
    [problem] = problems("job", spec(failure_policy={}))
    assert problem.field == "spec.failure_policy"
    assert problem.remedy == "did you mean failurePolicy?"


@pytest.mark.parametrize(
    ("quantity", "value"),
    [(3, 3), ("4", 4), ("1500m", 1.5), ("1k", 1000), ("2Ki", 2048), ("0.5Gi", 2**29), ("1P", 1e15)],
)
def test_quantities(quantity: int | str, value: float) -> None:
    assert quantity_value(quantity) == value


def test_durations() -> None:
    assert duration_seconds("1h30m") == 5400
    assert duration_seconds("90s") == 90
    assert duration_seconds("1h1m1s") == 3661
