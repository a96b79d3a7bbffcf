"""`llmtrain place`, `topology` and `plan` show what the health of nodes means for a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cluster_files import Shell, job, listed, tree

pytestmark = pytest.mark.unit

MISSING = {"type": "GPUMissing", "status": "True", "reason": "GPUMissing1"}
CAUSE = "aks/GPUMissing: condition GPUMissing=True, reason GPUMissing1"


def marked(*indexes: int) -> dict[str, Any]:
    nodes = tree(1, 4)
    for index in indexes:
        nodes[index]["status"]["conditions"].append(MISSING)
    return listed("Node", *nodes)


def words(out: str) -> str:
    return " ".join(out.replace("│", " ").split())


def test_place_and_topology_name_the_node_the_row_and_the_evidence(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = ["-f", file("job", job(4)), "--nodes", file("n", marked(2))]
    code, out, _ = llmtrain("place", *files)
    assert code == 1 and f"n2 (avoided for {CAUSE})" in words(out)
    found = json.loads(llmtrain("place", *files, "-o", "json")[1])
    assert found["obstacles"] == {"n2": f"avoided for {CAUSE}"}
    code, out, _ = llmtrain("topology", *files)
    assert code == 0 and f"cannot start here: avoided for {CAUSE}" in words(out)
    code, out, _ = llmtrain("topology", *files[2:])
    assert code == 0 and f"avoided ({CAUSE})" in words(out)
    nodes = json.loads(llmtrain("topology", *files, "-o", "json")[1])["nodes"]
    assert [node["state"] for node in nodes] == ["ready", "ready", "avoided", "ready"]
    assert nodes[2]["health"] == [
        {
            "row": "aks/GPUMissing",
            "evidence": "condition GPUMissing=True, reason GPUMissing1",
            "strength": "avoid",
            "inForce": True,
        }
    ]


def test_nodes_beyond_the_limit_are_used_and_named(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = ["-f", file("job", job(3)), "--nodes", file("n", marked(0, 1, 2, 3))]
    code, out, _ = llmtrain("place", *files)
    assert code == 0, "of four nodes one is avoided"
    assert "used although their health is in doubt, because too many nodes are: " in words(out)
    assert words(out).count(CAUSE) == 3
    assert "used all the same" in words(llmtrain("topology", *files)[1])
    assert llmtrain("place", *files, "--max-excluded-nodes-percent", "50")[0] == 1


def test_the_changes_of_an_administrator_are_read_from_a_file(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = ["-f", file("job", job(4)), "--nodes", file("n", marked(2))]
    off = file("off.yaml", [{"name": "aks/*", "strength": "off"}], True)
    assert llmtrain("place", *files, "--node-health", off)[0] == 0
    wrong = file("wrong.yaml", [{"name": "aks/GPUGone", "strength": "off"}], True)
    code, _, error = llmtrain("place", *files, "--node-health", wrong)
    assert code == 2 and "row aks/GPUGone: no row of this name is shipped" in words(error)


def test_plan_leaves_out_nodes_that_jobs_avoid(llmtrain: Shell, file: Callable[..., str]) -> None:
    nodes = marked(2)
    for item in nodes["items"]:
        item["metadata"]["labels"]["nvidia.com/gpu.product"] = "NVIDIA-H100-80GB-HBM3"
    model = ("--model", "llama3-8b", "--tokens", "1e12")
    _, out, error = llmtrain("plan", *model, "--nodes", file("n", nodes))
    assert "nodes left out: 1 avoided for their health" in words(out + error)
