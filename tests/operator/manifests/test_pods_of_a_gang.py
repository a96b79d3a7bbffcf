"""The pods of a gang differ by their node, name and ranks only. All else is built once."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api import env, labels
from llmtrain_operator.manifests.pod import make_pod, make_pod_template, pod_of_node
from tests.support.operator_harness.jobs import EVERYTHING, IDENTITY, NODES, checked_job

pytestmark = pytest.mark.unit

OF_NODE = {env.RANKS, env.NODE_RANK, env.PET_NODE_RANK}


def differences(one: Any, other: Any, path: str = "") -> set[str]:
    """Return the paths at which two pods differ. Items of lists are named, or numbered."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return set().union(*(differences(one.get(k), other.get(k), f"{path}.{k}") for k in keys))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = set[str]()
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            name = left.get("name", index) if isinstance(left, dict) else index
            found |= differences(left, right, f"{path}[{name}]")
        return found
    return set() if one == other else {path}


@pytest.mark.parametrize("init", [False, True], ids=["trainer", "init_container"])
def test_pods_of_a_gang_differ_by_node_name_and_ranks(init: bool) -> None:
    spec: dict[str, Any] = {**EVERYTHING}
    if init:
        own = [{"name": "fetch", "image": "busybox:1", "env": [{"name": "A", "value": "0"}]}]
        spec["workers"] = {**spec["workers"], "initContainers": own}
    first, second = (
        make_pod(checked_job(**spec), IDENTITY, 3, index, NODES, {f"{labels.LEVEL_PREFIX}r": name})
        for index, name in enumerate("ab")
    )
    containers = ["containers[trainer]", *(["initContainers[fetch]"] if init else [])]
    term = ".requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
    assert differences(first, second) == {
        ".metadata.name",
        f".metadata.labels.{labels.NODE_INDEX}",
        f".metadata.labels.{labels.LEVEL_PREFIX}r",
        ".spec.hostname",
        f".spec.affinity.nodeAffinity{term}.matchFields[0].values[0]",
        *(f".spec.{each}.env[{name}].value" for each in containers for name in OF_NODE),
    }


def test_a_pod_leaves_the_template_as_it_is() -> None:
    job = checked_job(**EVERYTHING)
    template = make_pod_template(job, IDENTITY, 3)
    pods = [pod_of_node(template, job, IDENTITY, 3, i, NODES[i], {"x": "y"}) for i in range(2)]
    assert template == make_pod_template(job, IDENTITY, 3)
    assert pods[0]["spec"]["volumes"] is pods[1]["spec"]["volumes"] is template["spec"]["volumes"]
