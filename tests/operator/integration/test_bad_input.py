"""Every invalid job gets a reason, a field and a remedy, and leaves no objects behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from llmtrain_devcluster.api import ApiStatusError
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    condition,
    message,
    status_of,
)

pytestmark = pytest.mark.cluster

TINY = {
    "layers": 2,
    "hiddenSize": 12,
    "heads": 3,
    "ffnSize": 12,
    "vocabSize": 256,
    "sequenceLength": 32,
}
BATCH = {"steps": 10, "globalBatchSize": 8, "microBatchSize": 1}


@dataclass(frozen=True)
class Case:
    """A job, and the parts of its expected message."""

    spec: dict[str, Any]
    reason: str
    said: tuple[str, ...]
    kind: str = "Accepted"
    script: PodScript | None = None


LONG = "n" * 51
CASES = {
    "unknown-preset": Case(
        {"model": {"preset": "gpt-9000"}},
        "UnknownPreset",
        ("spec.model.preset", "gpt-9000", "use one of", "llama3-8b"),
    ),
    "heads": Case(
        {"model": {"architecture": TINY}},
        "InvalidSpec",
        ("spec.parallelism.tensor", "heads", "choose a divisor"),
    ),
    "kv-heads": Case(
        {"model": {"architecture": {**TINY, "hiddenSize": 16, "heads": 4, "kvHeads": 1}}},
        "InvalidSpec",
        ("spec.parallelism.tensor", "kvHeads", "choose a divisor"),
    ),
    "batch-not-a-multiple": Case(
        {"training": {**BATCH, "globalBatchSize": 9}},
        "WorldSizeMismatch",
        ("spec.training.globalBatchSize", "use a multiple of"),
    ),
    "privileged-network": Case(
        {"network": {"profile": "tcpxo"}},
        "Forbidden",
        ("spec.network.profile", "path of the node", "set it to tcp", "--allow-privileged-pods"),
    ),
    "our-variable": Case(
        {"workers": {"env": [{"name": "MASTER_ADDR", "value": "evil"}]}},
        "Forbidden",
        ("spec.workers.env[0].name", "remove the variable"),
    ),
    LONG: Case({}, "NameTooLong", ("metadata.name", "at most 50 characters")),
    "no-such-level": Case(
        {"topology": {"require": "galaxy"}},
        "UnknownLevel",
        ("spec.topology.require", "galaxy", "use one of"),
        "Placed",
    ),
    "no-such-fabric": Case(
        {"topology": {"fabric": "nope"}},
        "FabricNotFound",
        ("spec.topology.fabric", "nope", "create it"),
        "Placed",
    ),
    "no-corpus": Case(
        {},
        "CorpusMissing",
        ("spec.data.sources[0].uri", "no such folder", "mount"),
        "Failed",
        PodScript(
            exit_after=0.2,
            exit_code=2,
            termination_message=message(
                "CorpusMissing",
                "no such folder /data",
                "spec.data.sources[0].uri",
                "mount a volume there",
                2,
            ),
        ),
    ),
    "bad-checkpoint": Case(
        {"checkpoint": {"uri": "file:///checkpoints"}},
        "CheckpointUnreadable",
        ("spec.checkpoint.uri", "permission denied", "chown"),
        "Failed",
        PodScript(
            exit_after=0.2,
            exit_code=2,
            termination_message=message(
                "CheckpointUnreadable",
                "permission denied",
                "spec.checkpoint.uri",
                "chown it to user 65532",
                2,
            ),
        ),
    ),
    "no-image": Case(
        {},
        "ImagePullFailed",
        ("spec.workers.image", "example.com/trainer:1", "cannot be pulled"),
        "Failed",
        PodScript(reason="ImagePullBackOff"),
    ),
}

REFUSED = {
    # Refused by the API server itself: the object never exists.
    "world-size": (
        {"workers": {"nodes": 2, "gpusPerNode": 2}, "parallelism": {"tensor": 2, "data": 3}},
        "spec.parallelism",
    ),
    "zero": ({"training": {**BATCH, "globalBatchSize": 0}}, "spec.training.globalBatchSize"),
    "negative": ({"parallelism": {"tensor": -2, "data": 2}}, "spec.parallelism.tensor"),
    "two-shapes": ({"model": {"preset": "tiny", "architecture": TINY}}, "spec.model"),
    "kv-heads-of-heads": (
        {"model": {"architecture": {**TINY, "kvHeads": 2}}},
        "spec.model.architecture.kvHeads",
    ),
}


async def test_every_mistake_has_a_message(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(*[{} for _ in range(6)])
    for name, case in CASES.items():
        if case.script is not None:
            harness.nodes.script(named(f"{name}-.*"), case.script)
        await harness.submit(name, **case.spec)
    await harness.reason("no-image", "PodsReady", "ImagePullFailed")
    await harness.patch("no-image", {"spec": {"failurePolicy": {"startupTimeout": "1s"}}})

    async def one(name: str, case: Case) -> None:
        job = await harness.reason(name, case.kind, case.reason)
        found = condition(job, case.kind)
        assert found["status"] == ("True" if case.kind == "Failed" else "False")
        for text in case.said:
            assert text in found["message"], (name, found)
        assert status_of(job)["reason"] == case.reason
        expected = {"Accepted": "Rejected", "Placed": "Queued", "Failed": "Failed"}[case.kind]
        assert status_of(job)["phase"] == expected
        assert found["observedGeneration"] == job["metadata"]["generation"]

    await asyncio.gather(*(one(name, case) for name, case in CASES.items()))
    started = {name for name, case in CASES.items() if case.script}
    # What never started has no children; what failed keeps only what explains it.
    left = [child for child in await harness.children() if child.startswith("pods/")]
    assert {child.removeprefix("pods/").rsplit("-", 2)[0] for child in left} <= started
    # The status comes first; what may still run is deleted in the turn after it.
    for _ in range(600):
        running = [
            pod["metadata"]["name"]
            for pod in await harness.pods()
            if pod["status"]["phase"] != "Failed" and "deletionTimestamp" not in pod["metadata"]
        ]
        if not running:
            break
        await asyncio.sleep(0.1)
    assert not running
    for child in await harness.children():
        owner = child.split("/")[-1]
        assert any(owner.startswith(name) for name in started), child


@pytest.mark.parametrize("name", REFUSED)
async def test_the_api_server_rejects(harness: OperatorHarness, name: str) -> None:
    spec, field = REFUSED[name]
    with pytest.raises(ApiStatusError) as refused:
        await harness.submit(name, **spec)
    assert refused.value.status == 422
    assert field in refused.value.message
