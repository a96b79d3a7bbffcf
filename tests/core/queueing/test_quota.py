"""The sum of a gang against ResourceQuotas, by the rules of Kubernetes. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from llmtrain_core.queueing.quota import charge_of, exceeded_quota, read_quota

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> Any:
    raw = {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}}
    return read_quota({**raw, "status": {"hard": hard, "used": used or {}}})


def pod(priority_class: str = "", **resources: dict[str, Any]) -> dict[str, Any]:
    named = {"priorityClassName": priority_class} if priority_class else {}
    resources = resources or {"limits": {GPU: "2"}}
    return {**named, "containers": [{"name": "trainer", "resources": resources}]}


def verdict(quotas: list[Any], count: int, spec: dict[str, Any] | None = None, **kw: Any) -> Any:
    return exceeded_quota(quotas, (charge_of(spec or pod()), count), **kw)


def test_a_quota_for_seven_of_eight_pods_refuses_the_gang() -> None:
    tight = quota({f"requests.{GPU}": "15", "pods": "100"}, {"pods": "3"})
    assert verdict([tight], 7) is None
    text = verdict([tight], 8)
    assert text == f"quota team: requests.{GPU} requested 16, used 0, limit 15"
    assert verdict([quota({"pods": "10"}, {"pods": "3"})], 8)
    assert verdict([quota({"count/pods": "10"}, {"count/pods": "2"})], 8) is None


def test_other_objects_of_a_job_count() -> None:
    services = {"services": Fraction(1)}
    assert verdict([quota({"services": "0"})], 1, objects=services)
    assert verdict([quota({"services": "1"})], 1, objects=services) is None
    assert verdict([quota({"services": "0"}, scopes=["BestEffort"])], 1, objects=services) is None


def test_every_quota_counts() -> None:
    assert verdict([quota({"pods": "9"}), quota({"pods": "7"})], 8)
    assert verdict([], 1000) is None


def test_pods_that_are_promised_to_other_jobs_count() -> None:
    room = quota({"pods": "10"})
    other = (charge_of(pod()), 3)
    assert verdict([room], 8) is None
    text = verdict([room], 8, others=[other])
    assert text and "used 0 + 3 of pods to come, limit 10" in text


def test_requests_and_limits_are_those_of_kubernetes() -> None:
    spec = pod(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi", "cpu": 1})
    amounts = charge_of(spec).amounts
    assert amounts["requests.cpu"] == amounts["cpu"] == Fraction(1, 2)
    assert amounts["limits.cpu"] == 1 and amounts["limits.memory"] == 2 * 2**30
    assert amounts["memory"] == amounts["requests.memory"] == 2**30
    # The default of a request is the limit.
    assert charge_of(pod()).amounts[f"requests.{GPU}"] == 2
    assert GPU not in charge_of(pod()).amounts
    first = {"name": "first", "resources": {"requests": {"cpu": "3"}}}
    assert charge_of({**spec, "initContainers": [first]}).amounts["cpu"] == 3
    sidecar = {**first, "restartPolicy": "Always"}
    assert charge_of({**spec, "initContainers": [sidecar]}).amounts["cpu"] == Fraction(7, 2)
    first_beside = charge_of({**spec, "initContainers": [sidecar, first]})
    assert first_beside.amounts["cpu"] == 6, "it runs while the sidecar does"
    assert charge_of({**spec, "initContainers": [first, sidecar]}).amounts["cpu"] == Fraction(7, 2)
    assert charge_of({**spec, "overhead": {"cpu": "1"}}).amounts["cpu"] == Fraction(3, 2)


@pytest.mark.parametrize(
    ("operator", "values", "high", "none"),
    [
        ("In", ["high"], True, False),
        ("NotIn", ["high"], False, True),
        ("Exists", [], True, False),
        ("DoesNotExist", [], False, True),
    ],
)
def test_a_quota_of_a_priority_class_counts_its_pods_only(
    operator: str, values: list[str], high: bool, none: bool
) -> None:
    rule = {"scopeName": "PriorityClass", "operator": operator, "values": values}
    scoped = quota({"pods": "0"}, scopeSelector={"matchExpressions": [rule]})
    assert bool(verdict([scoped], 1, pod("high"))) is high
    assert bool(verdict([scoped], 1, pod())) is none


@pytest.mark.parametrize(
    ("scope", "refuses"),
    [
        ("NotTerminating", True),
        ("Terminating", False),
        ("NotBestEffort", False),
        ("BestEffort", True),
        ("PriorityClass", False),
        ("CrossNamespacePodAffinity", False),
    ],
)
def test_scopes(scope: str, refuses: bool) -> None:
    assert bool(verdict([quota({"pods": "0"}, scopes=[scope])], 1)) is refuses


@pytest.mark.parametrize(
    ("text", "value"),
    [("1k", 1000), ("2Ei", 2 * 2**60), ("1E", 10**18), ("0.5", Fraction(1, 2)), ("100m", 0.1)],
)
def test_quantities(text: str, value: float | Fraction) -> None:
    assert quota({"cpu": text}).hard["cpu"] == pytest.approx(value)


def test_an_amount_that_cannot_be_read_is_left_out() -> None:
    assert quota({"cpu": "1e999999999", "pods": "-1"}).hard == {}


def test_amounts_in_messages_are_short() -> None:
    spec = pod(requests={"memory": "16Gi", "cpu": "250m"})
    text = verdict([quota({"requests.memory": "17Gi", "requests.cpu": "300m"})], 2, spec)
    assert text == (
        "quota team: requests.cpu requested 500m, used 0, limit 300m,"
        " requests.memory requested 32768Mi, used 0, limit 17408Mi"
    )
