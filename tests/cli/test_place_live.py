"""`place` and `topology` against a real API server, read with the real kubectl."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
LEAF = "network.topology.nvidia.com/leaf"
JOB = {
    "apiVersion": "llmtrain.dev/v1alpha1",
    "kind": "LLMTrainingJob",
    "metadata": {"name": "train"},
    "spec": {
        "parallelism": {"tensor": 8, "data": 2},
        "workers": {"gpusPerNode": 8, "image": "example.com/trainer:1", "command": ["train"]},
    },
}


def seat(node: str) -> dict[str, Any]:
    limits = {"limits": {"nvidia.com/gpu": "8"}}
    return {
        "metadata": {
            "name": "busy",
            "labels": {"llmtrain.dev/job-name": "other", "llmtrain.dev/node-index": "0"},
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "any/image:1", "resources": limits}],
        },
    }


async def llmtrain(kubeconfig: Path, *arguments: str) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(BIN / "llmtrain"), *arguments, "-o", "json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig)},
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return await asyncio.to_thread(run)


async def test_the_current_context_is_read(
    control_plane: ControlPlane,
    api: Api,
    namespace: str,
    scripted_nodes: ScriptedNodes,
    tmp_path: Path,
) -> None:
    await scripted_nodes.add(
        *(NodeSpec(f"live{i}", {LEAF: f"leaf-{i // 2}"}, gpus=8) for i in range(4))
    )
    scripted_nodes.default = PodScript(exit_after=None)
    await api.create("pods", seat("live0"), namespace)
    bound: Callable[[Any], bool] = lambda pod: bool(pod and pod["status"]["phase"] == "Running")  # noqa: E731
    await api.wait_for("pods", "busy", bound, namespace)
    kubeconfig = control_plane.kubeconfig("admin")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(JOB))
    placed = await llmtrain(kubeconfig, "place", "-f", str(job))
    assert [node["name"] for node in placed["nodes"]] == ["live2", "live3"]
    chart = await llmtrain(kubeconfig, "topology")
    nodes = {node["name"]: node for node in chart["nodes"]}
    assert nodes["live0"]["gpus"] == {"total": 8, "used": 8}
    assert nodes["live0"]["seats"] == [{"job": f"{namespace}/other", "ranks": list(range(8))}]
    assert nodes["live1"]["path"] == {"leaf": "leaf-0", "node": "live1"}
