"""Pydantic and the API server, on manifests that nobody would write: one verdict, and no crash.

Where the corpus shows the rules one by one, this puts values of every kind at every place of valid
manifests. A difference that it finds belongs into the corpus as well.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.api.job import JobSpec
from llmtrain_core.validation.check import check
from llmtrain_devcluster.api import Api, ApiStatusError, resource_path
from tests.support.paths import CORPUS

SEED = 20260101
SAMPLE = 600

FABRIC = {
    "levels": [
        {"name": "spine", "nodeLabel": "example.com/spine", "oversubscription": 7},
        {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
    ],
    "nics": {"perNode": 8, "gbitsPerSecond": 400},
    "nvlink": {"gbytesPerSecond": 900.5, "nodeLabel": "nvidia.com/gpu.clique"},
}
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    8,
    64,
    65,
    1024,
    1025,
    65536,
    65537,
    10**12,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**63,
    10**20,
    0.5,
    1.0,
    2.0,
    -0.0,
    1e-320,
    1e300,
    "",
    "a",
    "A",
    "a.b",
    "a/b",
    "1",
    "16Gi",
    "5m",
    "0s",
    "é",
    "\n",
    "a\n",
    " ",
    "/",
    "/a",
    "file:///x",
    "x" * 64,
    "\u2028",
    "\x00",
    "\u0661",
    "kubernetes.io/hostname",
    [],
    {},
    [None],
    ["a", "a"],
    ["a", "b"],
    [1, 1],
    [{}],
    [{"name": "a"}],
    {"a": None},
    {"a": "b"},
    {"a": 1},
    {"": "x"},
    {"name": "a"},
]
JOBS = "llmtrain.dev/v1alpha1/llmtrainingjobs"
FABRICS = "llmtrain.dev/v1alpha1/fabrics"


def valid_jobs() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted((CORPUS / "accepted").glob("*.yaml"))]
    # The extremes of length are in the corpus itself; here they would only take time.
    return [yaml.safe_load(text)["spec"] for text in texts if len(text) < 4000]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in pairs:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def with_value(spec: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(spec)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = copy.deepcopy(value)
    return changed


def mutations(specs: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    sites = [(spec, path) for spec in specs for path in places(spec)]
    return [with_value(*rng.choice(sites), rng.choice(VALUES)) for _ in range(count)]


def accepts(model: type[ApiModel], spec: dict[str, Any]) -> bool:
    try:
        model.from_wire(spec)
    except ValidationError:
        return False
    return True


@pytest.mark.unit
def test_check_never_raises() -> None:
    for spec in mutations(valid_jobs(), 1000):
        answer = check("job", spec)
        if isinstance(answer, list):
            assert all(p.field.startswith("spec") and p.message and p.remedy for p in answer)


async def _differences(
    api: Api, model: type[ApiModel], path: str, kind: str, specs: list[dict[str, Any]]
) -> list[str]:
    async def judge(spec: dict[str, Any]) -> str:
        body = {"apiVersion": "llmtrain.dev/v1alpha1", "kind": kind, "spec": spec}
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        try:
            stored = await api.request(
                "POST", path, query=query, body={**body, "metadata": {"name": "mutant"}}
            )
        except ApiStatusError as error:
            refused = error.message if accepts(model, spec) else ""
            return f"only the server refuses {json.dumps(spec)}: {refused}" if refused else ""
        if not accepts(model, spec):
            return f"only pydantic refuses {json.dumps(spec)}"
        same = model.from_wire(stored["spec"]) == model.from_wire(spec)
        return "" if same else f"stored otherwise: {json.dumps(spec)}: {stored['spec']}"

    return [text for text in await asyncio.gather(*map(judge, specs)) if text]


@pytest.mark.cluster
async def test_jobs(api: Api, namespace: str, crds: None) -> None:
    path = resource_path(JOBS, namespace)
    specs = mutations(valid_jobs(), SAMPLE)
    assert not await _differences(api, JobSpec, path, "LLMTrainingJob", specs)


@pytest.mark.cluster
async def test_fabrics(api: Api, crds: None) -> None:
    specs = [with_value(FABRIC, place, value) for place in places(FABRIC) for value in VALUES]
    specs += [FABRIC, {"preset": "topograph"}, {}, {**FABRIC, "preset": "aws"}]
    assert not await _differences(api, FabricSpec, resource_path(FABRICS), "Fabric", specs)
