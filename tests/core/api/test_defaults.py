"""Defaults and bounds that other code uses are those of the generated CRDs."""

from functools import reduce
from typing import Any

import pytest

from llmtrain_core.api import defaults
from llmtrain_core.api.base import duration_seconds
from llmtrain_core.api.crd import crds
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.job import FailurePolicy, Workers

JOB = next(crd for crd in crds() if crd["spec"]["names"]["kind"] == "LLMTrainingJob")
SCHEMA = JOB["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def field(path: str) -> dict[str, Any]:
    return reduce(lambda node, name: node["properties"][name], path.split("."), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.workers.gpuResource", defaults.GPU_RESOURCE),
        ("spec.failurePolicy.maxRestarts", defaults.MAX_RESTARTS),
        ("spec.failurePolicy.maxRestartsInPlace", defaults.MAX_RESTARTS_IN_PLACE),
        ("spec.failurePolicy.startupTimeout", defaults.STARTUP_TIMEOUT),
    ],
)
def test_the_schema_has_the_default(path: str, value: object) -> None:
    assert field(path)["default"] == value


def test_an_absent_policy_has_the_same_defaults() -> None:
    policy = FailurePolicy()
    assert policy.max_restarts == defaults.MAX_RESTARTS
    assert policy.max_restarts_in_place == defaults.MAX_RESTARTS_IN_PLACE
    assert policy.startup_timeout == defaults.STARTUP_TIMEOUT
    assert Workers(image="i").gpu_resource == defaults.GPU_RESOURCE


def test_the_hang_timeout_is_a_default_of_the_trainer_only() -> None:
    assert "default" not in field("spec.failurePolicy.hangTimeout")
    assert duration_seconds(defaults.HANG_TIMEOUT) == 600


def test_the_schema_has_the_bounds() -> None:
    assert field("spec.workers.nodes")["maximum"] == defaults.MAX_NODES
    failures = field("status.failures")
    assert failures["maxItems"] == defaults.MAX_FAILURES
    conditions = field("status.conditions")["items"]["properties"]
    for reason in (failures["items"]["properties"]["reason"], conditions["reason"]):
        assert reason["maxLength"] == defaults.REASON_LENGTH
    assert failures["items"]["properties"]["message"]["maxLength"] == defaults.MESSAGE_LENGTH
    assert conditions["message"]["maxLength"] >= defaults.MESSAGE_LENGTH


def test_the_first_retryable_exit_code() -> None:
    code = defaults.FIRST_RETRYABLE_EXIT_CODE
    assert FailureInfo("ExitCode", "", exit_code=code).retryable
    assert not FailureInfo("ExitCode", "", exit_code=code - 1).retryable
