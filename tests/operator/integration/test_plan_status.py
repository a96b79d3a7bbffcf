"""The plan in a real cluster: its figures, the memory check and the measurement."""

from __future__ import annotations

import pytest

from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.time.predict import predict, tokens_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.validation.check import Job, check
from llmtrain_devcluster.api import Object
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    LARGE,
    OperatorHarness,
    OperatorProcess,
    condition,
    job_object,
    reporting,
    status_of,
)

pytestmark = pytest.mark.cluster

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
H200 = {"nvidia.com/gpu.product": "NVIDIA-H200"}


def is_rejected(job: Object | None) -> bool:
    return condition(job, "Accepted").get("reason") == "WillNotFit"


async def test_a_job_that_does_not_fit_is_rejected_until_larger_gpus_exist(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(H100, H100)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("large", **LARGE)
    found = await harness.wait("large", is_rejected)
    accepted = condition(found, "Accepted")
    assert accepted["status"] == "False"
    for said in (
        "spec.training.microBatchSize",
        "H100 has 79.6 GiB",
        "activations",
        "set training.microBatchSize to 1",
        ALLOW_OVER_MEMORY,
    ):
        assert said in accepted["message"]
    status = status_of(found)
    assert (status["phase"], status["reason"]) == ("Rejected", "WillNotFit")
    assert status["plan"]["memory"]["fits"] is False
    assert await harness.children() == []
    # A job that is too large blocks no other job, and no other job blocks it.
    await harness.submit("small")
    await harness.phase("small", "Running")
    larger = await harness.add_nodes(H200, H200, start=2)
    running = await harness.phase("large", "Running")
    status = status_of(running)
    assert [n for b in status["placement"]["blocks"] for n in b["nodes"]] == larger
    assert status["plan"]["hardware"] == "H200" and status["plan"]["memory"]["fits"] is True


async def test_the_annotation_overrides_the_memory_check(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(H100, H100)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("daring", **LARGE)
    await harness.wait("daring", is_rejected)
    await harness.patch("daring", {"metadata": {"annotations": {ALLOW_OVER_MEMORY: "perhaps"}}})
    slip = await harness.reason("daring", "Accepted", "InvalidSpec")
    assert "neither" in condition(slip, "Accepted")["message"]
    await harness.patch("daring", {"metadata": {"annotations": {ALLOW_OVER_MEMORY: "true"}}})
    running = await harness.phase("daring", "Running")
    assert status_of(running)["plan"]["memory"]["fits"] is False
    assert len(await harness.pods()) == 2


async def test_without_gpu_labels_no_job_is_rejected(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    running = await harness.run_on_two_nodes("unknown", **LARGE)
    plan = status_of(running)["plan"]
    assert "hardware" not in plan and "step" not in plan and "fits" not in plan["memory"]
    assert "nvidia.com/gpu.product" in plan["note"]


async def test_the_plan_and_its_measurement(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes(H100, H100)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("reported")
    running = await harness.phase("reported", "Running")
    subject = check("reported", job_object("reported", "ns")["spec"])
    assert isinstance(subject, Job)
    setup = TrainingSetup.of(subject)
    expected = predict(
        setup, CATALOGUE["H100"].in_nodes_of(2), tokens_of(subject, setup), slowed={}
    )
    plan = status_of(running)["plan"]
    assert plan["memory"]["perGpuBytes"] == expected.memory.parts
    assert plan["parameters"] == expected.parameters and plan["tokens"] == expected.tokens
    assert plan["totalFlops"] == pytest.approx(expected.total_flops, rel=1e-5)
    assert plan["step"]["seconds"] == pytest.approx(expected.time.seconds, rel=1e-5)
    assert plan["mfu"] == pytest.approx(expected.mfu, rel=1e-5)
    assert plan["assumptions"] == list(expected.assumptions)
    assert "eta" in status_of(running)["progress"], "planned before it is measured"
    pace = 1.5 * plan["step"]["seconds"]
    report = {"phase": "training", "attempt": 0, "step": 1, "totalSteps": 100, "stepSeconds": pace}
    head = await harness.api.get("pods", "reported-0-0", harness.namespace)

    async with reporting(head, report):
        await harness.wait("reported", lambda job: "measured" in status_of(job).get("plan", {}))
        report["step"] = 42
        found = await harness.wait(
            "reported", lambda job: "errorRatio" in status_of(job)["plan"].get("measured", {})
        )
        measured = status_of(found)["plan"]["measured"]
        assert measured["errorRatio"] == pytest.approx(1.5, rel=1e-3)
        assert measured["atStep"] == 42 and measured["stepSeconds"] == pytest.approx(pace, rel=1e-4)
        await operator.shows("llmtrain_operator_plan_error_ratio_count 1.0")
