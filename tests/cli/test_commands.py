"""The commands that need no cluster, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmtrain_core.images import TRAINER
from tests.support.paths import ROOT

LLMTRAIN = str(Path(sys.executable).parent / "llmtrain")
LEAF = "network.topology.nvidia.com/leaf"
SPINE = "network.topology.nvidia.com/spine"


def llmtrain(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLMTRAIN, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def job(**parallelism: int) -> dict:
    return {
        "apiVersion": "llmtrain.dev/v1alpha1",
        "kind": "LLMTrainingJob",
        "metadata": {"name": "example"},
        "spec": {
            "model": {"preset": "tiny"},
            "data": {"sources": [{"name": "text", "uri": "file:///text"}]},
            "training": {"steps": 10, "globalBatchSize": 48},
            "parallelism": parallelism,
            "workers": {"gpusPerNode": 2, "image": TRAINER},
        },
    }


def node(name: str, leaf: str, gpus: int = 2) -> dict:
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {LEAF: leaf, SPINE: "spine-1"}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "8", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, node_name: str, gpus: int) -> dict:
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "other"},
        "spec": {"nodeName": node_name, "containers": [{"name": "c", "resources": limits}]},
        "status": {"phase": "Running"},
    }


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, document: object, as_yaml: bool = False) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document) if as_yaml else json.dumps(document))
        return str(path)

    return write


def nodes(*items: dict) -> dict:
    return {"kind": "NodeList", "apiVersion": "v1", "items": list(items)}


def test_layout_prints_the_groups_of_every_kind():
    answer = llmtrain("layout", "--tensor", "2", "--data", "2", "--pipeline", "4", "-o", "json")
    assert answer.returncode == 0, answer.stderr
    groups = json.loads(answer.stdout)
    assert groups["tensor"][:2] == [[0, 1], [2, 3]]
    assert groups["data"][:3] == [[0, 2], [1, 3], [4, 6]]
    assert groups["pipeline"] == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
    assert groups["model"] == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert groups["context"] == groups["replicate"] == [[rank] for rank in range(16)]


def test_layout_as_text_leaves_out_dimensions_of_one():
    answer = llmtrain("layout", "--tensor", "2", "--data", "2")
    assert "tp2·dp2: 4 ranks" in answer.stdout
    assert "pipeline" not in answer.stdout


@pytest.mark.parametrize("degree", ["0", "-3"])
def test_layout_refuses_a_degree_below_one_and_names_the_option(degree: str):
    answer = llmtrain("layout", "--tensor", degree)
    assert answer.returncode == 2
    assert f"--tensor: {degree}" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_place_prints_who_sits_where(write):
    inventory = [node(f"n{i}", f"leaf-{i % 2}") for i in range(6)]
    answer = llmtrain(
        "place",
        "-f",
        write("job.yaml", job(tensor=2, data=3), as_yaml=True),
        "--nodes",
        write("nodes.json", nodes(*inventory)),
        "-o",
        "json",
    )
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["fits"] is True
    assert [n["name"] for n in result["nodes"]] == ["n0", "n2", "n4"]
    assert [n["ranks"] for n in result["nodes"]] == [[0, 1], [2, 3], [4, 5]]
    assert result["nodes"][0]["path"] == {"spine": "spine-1", "leaf": "leaf-0", "node": "n0"}
    assert result["domains"] == {"spine": 1, "leaf": 1, "node": 3}
    assert result["crossings"]["leaf"] == {"tensor": 0, "data": 0}


def test_place_says_what_is_short_and_exits_with_one(write):
    answer = llmtrain(
        "place",
        "-f",
        write("job.json", job(tensor=2, data=2)),
        "--nodes",
        write("nodes.yaml", nodes(node("a", "l"), node("b", "l")), as_yaml=True),
        "--pods",
        write("pods.json", nodes(pod("p", "b", 1)) | {"kind": "PodList"}),
    )
    assert answer.returncode == 1
    assert "does not fit: InsufficientGpus" in answer.stdout
    assert "1 nvidia.com/gpu in use" in answer.stdout


def test_place_takes_a_fabric_from_a_file_and_by_name(write):
    files = ["-f", write("j", job(tensor=2, data=1)), "--nodes", write("n", nodes(node("a", "l")))]
    levels = [("room", SPINE), ("node", "kubernetes.io/hostname")]
    fabric = {"spec": {"levels": [{"name": name, "nodeLabel": key} for name, key in levels]}}
    own = llmtrain("place", *files, "--fabric", write("fabric.yaml", fabric), "-o", "json")
    assert json.loads(own.stdout)["nodes"][0]["path"] == {"room": "spine-1", "node": "a"}
    named = llmtrain("place", *files, "--fabric", "zone", "-o", "json")
    assert json.loads(named.stdout)["nodes"][0]["path"] == {"zone": "unlabelled:a", "node": "a"}
    missing = llmtrain("place", *files, "--fabric", "nowhere")
    assert missing.returncode == 2
    assert "presets are aws" in missing.stderr


def test_place_lists_every_problem_of_a_job(write):
    bad = job(tensor=2, data=3)
    bad["spec"]["model"] = {"preset": "gpt-9"}
    bad["spec"]["failurePolicy"] = {"rules": [{"name": "a", "action": "FailJob"}]}
    answer = llmtrain(
        "place", "-f", write("job", bad), "--nodes", write("nodes", nodes(node("a", "l")))
    )
    assert answer.returncode == 2
    assert "spec.model.preset" in answer.stderr
    assert "spec.failurePolicy.rules" in answer.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "neither YAML nor JSON"), ("[]", "is not an object"), ("kind: Pod", "LLMTrainingJob")],
)
def test_place_names_a_broken_file(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    answer = llmtrain("place", "-f", str(path), "--nodes", str(path))
    assert answer.returncode == 2
    assert str(path) in answer.stderr
    assert expected in answer.stderr


def test_crd_prints_and_writes_what_is_committed(tmp_path: Path):
    committed = ROOT / "crds"
    assert llmtrain("crd", "--write", str(tmp_path)).returncode == 0
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in committed.iterdir()}
    printed = list(yaml.safe_load_all(llmtrain("crd").stdout))
    assert {crd["spec"]["names"]["kind"] for crd in printed} == {"LLMTrainingJob", "Fabric"}
