"""`llmtrain tune`: the job that tries variables, and its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from llmtrain_core.validation.check import NAME_LIMIT, Job, check
from tests.support.cluster_files import Shell

pytestmark = pytest.mark.unit


def _manifest(**changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"preset": "tiny"},
        "data": {"sources": [{"name": "text", "uri": "file:///text"}]},
        "training": {
            "tokens": 10**9,
            "globalBatchSize": 16,
            "communication": {"autotune": True, "overlap": True},
            "evaluateEverySteps": 100,
            "trackers": ["wandb"],
        },
        "parallelism": {"replicate": 2},
        "workers": {"nodes": 2, "image": "image"},
        "network": {"profile": "infiniband", "nccl": {"NCCL_DEBUG": "INFO"}},
        "topology": {"prefer": "rack"},
        "checkpoint": {"uri": "file:///saved"},
        "suspend": True,
        **changes,
    }
    labels = {"kueue.x-k8s.io/queue-name": "team"}
    metadata = {"name": "pretrain", "namespace": "lab", "labels": labels, "annotations": {"a": "b"}}
    return {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": metadata,
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def test_the_job_is_the_same_and_trains_nothing(llmtrain: Shell, file: Callable[..., str]) -> None:
    given = _manifest()
    code, out, err = llmtrain("tune", "-f", file("job.yaml", given), "--steps", "7")
    assert code == 0, err
    made = yaml.safe_load(out)
    assert isinstance(check("job", made["spec"]), Job)
    metadata = made["metadata"]
    assert metadata == {
        "name": "pretrain-tune",
        "namespace": "lab",
        "labels": given["metadata"]["labels"],
    }
    same = ("model", "data", "parallelism", "workers", "topology")
    assert {name: made["spec"][name] for name in same} == {
        name: given["spec"][name] for name in same
    }
    assert made["spec"]["training"] == {
        "steps": 7,
        "globalBatchSize": 16,
        "communication": {"overlap": True},
    }
    assert made["spec"]["network"] == {**given["spec"]["network"], "tuning": {}}
    assert not {"checkpoint", "suspend"} & made["spec"].keys()
    assert (
        json.loads(llmtrain("tune", "-f", file("job.yaml", given), "-o", "json")[1])["spec"][
            "training"
        ]["steps"]
        == 10
    )


def test_a_long_name_is_cut(llmtrain: Shell, file: Callable[..., str]) -> None:
    given = _manifest()
    given["metadata"]["name"] = "a" * (NAME_LIMIT - 6) + "-" + "b" * 5
    name = yaml.safe_load(llmtrain("tune", "-f", file("job.yaml", given))[1])["metadata"]["name"]
    assert name == "a" * (NAME_LIMIT - 6) + "-tune"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workers": {"nodes": 2, "image": "i", "command": ["x"]}}, "spec.workers.command"),
        (
            {
                "training": {
                    "steps": 9,
                    "globalBatchSize": 16,
                    "gradientSync": {"mode": "diloco"},
                }
            },
            "needs gradientSync.mode every-step",
        ),
        ({"training": {"globalBatchSize": 16}}, "set exactly one of steps and tokens"),
    ],
    ids=["command", "diloco", "invalid"],
)
def test_a_job_that_cannot_be_tuned_is_refused(
    changes: dict[str, Any], told: str, llmtrain: Shell, file: Callable[..., str]
) -> None:
    code, out, err = llmtrain("tune", "-f", file("job.yaml", _manifest(**changes)))
    assert (code, out) == (2, "") and told in err


def test_the_result_has_what_to_put_into_the_job(llmtrain: Shell, file: Callable[..., str]) -> None:
    trials = [
        {"variables": {}, "stepSeconds": 1.25},
        {"variables": {"NCCL_NVLS_ENABLE": "0"}, "failure": "RankHung"},
        {"variables": {"NCCL_MAX_CTAS": "8"}, "stepSeconds": 1.0},
    ]
    tuning = {
        "state": "Chosen",
        "placement": "ab",
        "fastest": {"NCCL_MAX_CTAS": "8"},
        "trials": trials,
    }

    def shown(**changes: Any) -> tuple[int, str, str]:
        found = {**_manifest(), "status": {"progress": {"networkTuning": {**tuning, **changes}}}}
        return llmtrain("tune", "--result", file("job.json", found))

    code, out, err = shown()
    assert code == 0, err
    table, _, snippet = out.partition("Put it into the job:")
    assert [line.split() for line in table.splitlines()[1:4]] == [
        ["1.25", "s", "100.0%", "the", "job", "as", "it", "is"],
        ["RankHung", "NCCL_NVLS_ENABLE=0"],
        ["1", "s", "80.0%", "*", "NCCL_MAX_CTAS=8"],
    ]
    nccl = {"NCCL_DEBUG": "INFO", "NCCL_MAX_CTAS": "8"}
    assert yaml.safe_load(snippet) == {"spec": {"network": {"nccl": nccl}}}
    running = {"variables": {"NCCL_MIN_CTAS": "32"}}
    code, out, err = shown(state="Trying", trials=[*trials, running])
    assert code == 0 and "running" in out and "not complete" in out
    assert "It needs no change" in shown(fastest={})[1]
    assert shown(fastest={"HOME": "/"})[0] == 1
    assert llmtrain("tune", "--result", file("job.json", _manifest()))[0] == 1
    assert llmtrain("tune")[0] == 2
