"""`llmtrain plan --nodes` shows the network of a job by the facts of the nodes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml

from tests.support.cluster_files import LEAF, Shell, listed, node
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

EXAMPLE = EXAMPLES / "llama3-8b.yaml"


def test_the_network_of_the_nodes_is_shown(llmtrain: Shell, file: Callable[..., str]) -> None:
    spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
    degrees = spec["parallelism"]
    ranks = degrees["tensor"] * degrees["pipeline"] * degrees["data"]
    nodes = [node(f"n{index}") for index in range(ranks // 8)]
    for each in nodes:
        each["metadata"]["labels"] |= {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", LEAF: "l"}
        each["status"]["allocatable"]["rdma/shared_ib"] = "63"
    arguments = ("-f", str(EXAMPLE), "--nodes", file("nodes", listed("Node", *nodes)))
    code, out, err = llmtrain("plan", *arguments, "-o", "json")
    assert code == 0, err
    network = json.loads(out)["network"]
    fact = "allocatable rdma/shared_ib: 63"
    assert (network["row"], network["fact"]) == ("nvidia-network-operator", fact)
    assert f"NETWORK  nvidia-network-operator: {fact}" in llmtrain("plan", *arguments)[1]
    assert "network" not in json.loads(llmtrain("plan", "-f", str(EXAMPLE), "-o", "json")[1])
