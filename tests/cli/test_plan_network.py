"""`llmtrain plan --nodes` and `llmtrain place` show the network by the facts of the nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.support.cluster_files import LEAF, Shell, job, listed, node
from tests.support.node_lists import FOLDER
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

EXAMPLE = EXAMPLES / "llama3-8b.yaml"
MEGA = "nvidia-h100-mega-80gb"


def cluster() -> list[dict[str, Any]]:
    """Return as many nodes of 8 GPUs as the job of the example needs."""
    degrees = yaml.safe_load(EXAMPLE.read_text())["spec"]["parallelism"]
    ranks = degrees["tensor"] * degrees["pipeline"] * degrees["data"]
    found = [node(f"n{index}") for index in range(ranks // 8)]
    for each in found:
        each["metadata"]["labels"] |= {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", LEAF: "l"}
    return found


def test_a_sidecar_is_shown_to_a_job_that_names_its_profile(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    recorded = str(FOLDER / "gke-a3-high.yaml")
    arguments = ("--nodes", recorded, "-o", "json")
    code, out, _ = llmtrain("place", "-f", file("auto.yaml", job(2), True), *arguments)
    found = json.loads(out)["network"]
    assert code == 0 and found["row"] == "tcp"
    assert found["notes"][0].endswith("; set network.profile: tcpx to use it")
    named = job(2)
    named["spec"]["network"] = {"profile": "tcpx"}
    code, out, _ = llmtrain("place", "-f", file("tcpx.yaml", named, True), "--nodes", recorded)
    assert code == 0 and "NETWORK  gke-tcpx: label cloud.google.com/gke-accelerator=" in out
    assert "Sidecar tcpx-daemon=us-docker.pkg.dev/gce-ai-infra/gpudirect-" in out
    assert "HostPath /run/tcpx=trainer:/run/tcpx, tcpx-daemon:/run/tcpx, set by gke-tcpx" in out


def test_the_network_of_the_nodes_is_shown(llmtrain: Shell, file: Callable[..., str]) -> None:
    nodes = cluster()
    for each in nodes:
        each["status"]["allocatable"]["rdma/shared_ib"] = "63"
    arguments = ("-f", str(EXAMPLE), "--nodes", file("nodes", listed("Node", *nodes)))
    code, out, err = llmtrain("plan", *arguments, "-o", "json")
    assert code == 0, err
    network = json.loads(out)["network"]
    fact = "allocatable rdma/shared_ib: 63"
    assert (network["row"], network["fact"]) == ("nvidia-network-operator", fact)
    assert f"NETWORK  nvidia-network-operator: {fact}" in llmtrain("plan", *arguments)[1]
    assert "network" not in json.loads(llmtrain("plan", "-f", str(EXAMPLE), "-o", "json")[1])
