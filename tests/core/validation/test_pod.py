"""Checks of pods: environment variables of devices, mounts over reserved folders, `shmSize`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.containers import EnvVar
from llmtrain_core.api.volumes import Volume
from llmtrain_core.images import TRAINER_PATHS
from llmtrain_core.validation.check import Job, Problem, check
from tests.support.paths import CORPUS, ROOT

pytestmark = pytest.mark.unit

OWN = {"command": ["torchrun"]}


def found(**workers: Any) -> Job | list[Problem]:
    raw = yaml.safe_load((CORPUS / "accepted/minimal.yaml").read_text())["spec"]
    return check("job", {**raw, "workers": {"nodes": 1, "image": "x", **workers}})


def problem(**workers: Any) -> Problem:
    problems = found(**workers)
    assert isinstance(problems, list) and len(problems) == 1, problems
    return problems[0]


def mounted(*paths: str, **workers: Any) -> dict[str, Any]:
    volumes = [
        {"name": f"v{number}", "mountPath": path, "emptyDir": {}}
        for number, path in enumerate(paths)
    ]
    return {"volumes": volumes, **workers}


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_MOFED",
        "NVIDIA_GDS",
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_REQUIRE_CUDA",
        "NVIDIA_DISABLE_REQUIRE",
        "AMD_VISIBLE_DEVICES",
        "HABANA_VISIBLE_DEVICES",
        "ASCEND_VISIBLE_DEVICES",
    ],
)
def test_variables_of_the_container_runtime_are_refused(name: str) -> None:
    for workers in ({}, OWN):
        refused = problem(env=[{"name": "OK"}, {"name": name, "value": "all"}], **workers)
        assert refused.reason == Reason.FORBIDDEN
        assert refused.field == "spec.workers.env[1].name"
        assert name in refused.message and refused.remedy.startswith("remove the variable")


def test_variables_of_libraries_in_the_container_are_not() -> None:
    names = [*sorted(env.LIBRARY_VARIABLES), "NCCL_DEBUG", "nvidia_visible_devices", "ZE_AFFINITY"]
    assert isinstance(found(env=[{"name": name, "value": "0"} for name in names]), Job)


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("/etc", "/etc/llmtrain"),
        ("/var", "/var/lib/llmtrain"),
        ("/var/lib", "/var/lib/llmtrain"),
        ("/run", "/run/nvidia-container-devices"),
        ("/var/run", "/var/run/nvidia-container-devices"),
        ("/run/secrets", "/run/secrets/kubernetes.io"),
    ],
)
def test_a_mount_above_a_reserved_folder_is_refused(path: str, hidden: str) -> None:
    for workers in ({}, OWN):
        refused = problem(**mounted("/data", path, **workers))
        assert refused.reason == Reason.FORBIDDEN
        assert refused.field == "spec.workers.volumes[1].mountPath"
        assert refused.message.startswith(f"{path} hides {hidden}, which is reserved for the ")
        assert refused.remedy == "mount the volume elsewhere"


@pytest.mark.parametrize("folder", [*env.OWNED_PATHS, *env.RUNTIME_PATHS])
def test_a_mount_at_or_below_a_reserved_folder_is_refused(folder: str) -> None:
    for path in (folder, f"{folder}/a/b"):
        refused = problem(**mounted(path, **OWN))
        assert refused.message.startswith(f"{folder} is reserved for the ")


def test_kubectl_explain_names_what_is_refused() -> None:
    variables = EnvVar.model_fields["name"].description or ""
    words = set(re.findall(r"\w+", variables))
    prefixed = {name for name in env.OWNED if name.startswith(env.PREFIX)}
    assert words >= (env.OWNED - prefixed) | env.SETTABLE | env.LIBRARY_VARIABLES
    for pattern in (env.PREFIX, env.RUNTIME_PREFIX):
        assert f"{pattern}*" in variables
    assert f"*{env.RUNTIME_SUFFIX}" in variables
    paths = Volume.model_fields["mount_path"].description or ""
    assert set(re.findall(r"/[\w/-]*\w", paths)) >= {*env.OWNED_PATHS, *TRAINER_PATHS}
    for path in env.RUNTIME_PATHS:
        folder, _, name = path.removeprefix("/var").removeprefix("/").partition("/")
        assert f"/{folder}" in paths and name in paths


def test_what_the_operator_mounts_is_reserved() -> None:
    for path in (*env.WRITABLE_PATHS, env.JOB_FOLDER_PATH, env.TERMINATION_LOG_PATH):
        assert isinstance(found(**mounted(path)), list), path


@pytest.mark.parametrize("path", ["/opt", "/usr", "/lib", *TRAINER_PATHS, "/opt/llmtrain/lib/x"])
def test_the_trainer_image_is_not_hidden(path: str) -> None:
    refused = problem(**mounted(path))
    assert refused.field == "spec.workers.volumes[0].mountPath"
    assert "belongs to the trainer image" in refused.message
    # The layout of other images is not known.
    assert isinstance(found(**mounted(path, **OWN)), Job)


def test_the_trainer_image_has_its_packages_there() -> None:
    assert f"ENV PATH={TRAINER_PATHS[0]}/bin:" in (ROOT / "Dockerfile").read_text()


def test_mounts_beside_reserved_folders_are_accepted() -> None:
    beside = ("/data", "/etc/llmtrain-x", "/etc/ssl", "/tmpfs", "/opt/x", "/var/run/x", "/devices")
    assert isinstance(found(**mounted(*beside)), Job)


@pytest.mark.parametrize("path", ["/", "//", "/tmp/", "//tmp", "/a/../tmp", "/a/./b", "tmp"])
def test_other_spellings_of_a_path_are_refused_by_the_schema(path: str) -> None:
    assert problem(**mounted(path)).reason == Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("size", "limit", "words"),
    [
        ("1Gi", "1Gi", "1Gi of shared memory leave nothing of the memory limit of 1Gi"),
        ("10Ti", "64Gi", "10Ti of shared memory leave nothing of the memory limit of 64Gi"),
        (0, None, "0 is less than 1Mi"),
        ("0Gi", "1Gi", "0Gi is less than 1Mi"),
        ("500m", None, "500m is less than 1Mi"),
    ],
)
def test_shared_memory_is_bounded(size: Any, limit: str | None, words: str) -> None:
    resources = {"limits": {"memory": limit}} if limit else {}
    refused = problem(shmSize=size, resources=resources)
    assert (refused.reason, refused.field) == (Reason.INVALID_SPEC, "spec.workers.shmSize")
    assert refused.message == words and refused.remedy


@pytest.mark.parametrize(
    ("resources", "requested"),
    [
        ({}, "2Gi"),
        ({"requests": {"cpu": 1}}, "2Gi"),
        ({"requests": {"memory": "1Gi"}}, "2Gi"),
        ({"requests": {"memory": "8Gi"}}, "8Gi"),
        ({"limits": {"memory": "4Gi"}}, None),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "4Gi"}}, "2Gi"),
    ],
)
def test_shared_memory_counts_as_memory(resources: Any, requested: str | None) -> None:
    job = found(shmSize="2Gi", resources=resources)
    assert isinstance(job, Job) and job.spec.workers.memory_request == requested


def test_the_root_file_system_is_read_only_where_the_image_is_ours() -> None:
    for workers, expected in (
        ({}, True),
        (OWN, False),
        ({"readOnlyRootFilesystem": False}, False),
        ({"readOnlyRootFilesystem": True, **OWN}, True),
    ):
        job = found(**workers)
        assert isinstance(job, Job) and job.spec.workers.has_read_only_root is expected
