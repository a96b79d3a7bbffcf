"""`llmtrain topology`: the tree, who sits where, and labels that changed under a job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.cluster_files import LEAF, Shell, listed, node, pod, tree

pytestmark = pytest.mark.unit

JOB, INDEX = "llmtrain.dev/job-name", "llmtrain.dev/node-index"


def seat(index: int, on: str, gpus: int = 8, job: str = "train") -> dict[str, Any]:
    return pod(f"{job}-0-{index}", on, gpus, **{JOB: job, INDEX: str(index)})


def stored(paths: dict[str, list[str]]) -> dict[str, Any]:
    """A job's object whose status says that it was placed so."""
    placement = {
        "attempt": 0,
        "gpusPerNode": 8,
        "blocks": [{"path": path, "nodes": nodes} for path, nodes in paths.items()],
        "levels": [{"level": name, "domains": 1} for name in ("spine", "leaf", "node")],
    }
    return {
        "kind": "LLMTrainingJob",
        "metadata": {"name": "train", "namespace": "team"},
        "spec": {},
        "status": {"placement": placement},
    }


def test_the_tree_with_the_jobs_on_it(llmtrain: Shell, file: Any) -> None:
    pods = [seat(0, "n2"), seat(1, "n10"), pod("other", "n0", 2), seat(2, "gone")]
    files = [
        "--nodes",
        file("n", listed("Node", *tree())),
        "--pods",
        file("p", listed("Pod", *pods)),
    ]
    code, out, _ = llmtrain("topology", *files)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    lines = out.splitlines()
    assert lines[0] == "spine s0  [#.......] 10/64  8 nodes"
    assert [line.split()[-2:] for line in lines if "team/train 0-7" in line] == [
        ["team/train", "0-7"]
    ]
    names = [line.split()[line.split().index("node") + 1] for line in lines if " node n" in line]
    assert names == [f"n{index}" for index in range(16)], "natural order"
    assert "team/train: 24 ranks on 2 nodes; domains: spine 2, leaf 2" in out
    assert "pods are on nodes that are not in the list: gone" in out


def test_the_json_names_every_node_and_seat(llmtrain: Shell, file: Any) -> None:
    ranked = seat(0, "n1")
    ranked["spec"]["containers"][0]["env"] = [{"name": "LLMTRAIN_RANKS", "value": "8,9,10,11"}]
    ended = seat(1, "n0") | {"status": {"phase": "Succeeded"}}
    files = [
        "--nodes",
        file("n", listed("Node", *tree(1, 3))),
        "--pods",
        file("p", listed("Pod", ranked, ended, seat(2, "n2", 4, "other"))),
    ]
    found = json.loads(llmtrain("topology", *files, "-o", "json")[1])
    assert [level["name"] for level in found["levels"]] == ["spine", "leaf", "node"]
    assert [(n["name"], n["gpus"], n["seats"]) for n in found["nodes"]] == [
        ("n0", {"total": 8, "used": 0}, []),
        ("n1", {"total": 8, "used": 8}, [{"job": "team/train", "ranks": [8, 9, 10, 11]}]),
        ("n2", {"total": 8, "used": 4}, [{"job": "team/other", "ranks": [8, 9, 10, 11]}]),
    ]
    assert [job["job"] for job in found["jobs"]] == ["team/other", "team/train"]
    assert found["findings"] == [] and found["unknownNodes"] == []


@pytest.mark.parametrize("index", ["", "-1", "x", "9" * 30, "²"])
def test_a_pod_with_odd_labels_has_no_ranks(llmtrain: Shell, file: Any, index: str) -> None:
    odd = pod("p", "n0", 8, **{JOB: "train", INDEX: index})
    files = [
        "--nodes",
        file("n", listed("Node", *tree(1, 1))),
        "--pods",
        file("p", listed("Pod", odd)),
    ]
    found = json.loads(llmtrain("topology", *files, "-o", "json")[1])
    assert found["nodes"][0]["seats"] == [{"job": "team/train", "ranks": []}]
    assert "team/train ?" in llmtrain("topology", *files)[1]


def test_a_label_changed_under_a_job_is_told(llmtrain: Shell, file: Any) -> None:
    nodes = tree(1, 2)
    files = [
        "--pods",
        file("p", listed("Pod", seat(0, "n0"), seat(1, "n1"))),
        "--jobs",
        file("j", listed("LLMTrainingJob", stored({"s0/l0": ["n0", "n1"]}))),
    ]
    before = json.loads(
        llmtrain("topology", "--nodes", file("n", listed("Node", *nodes)), *files, "-o", "json")[1]
    )
    assert before["jobs"][0]["moved"] == []
    nodes[1]["metadata"]["labels"][LEAF] = "l7"
    files = ["--nodes", file("n", listed("Node", *nodes)), *files]
    after = json.loads(llmtrain("topology", *files, "-o", "json")[1])
    assert after["jobs"][0]["moved"] == [{"node": "n1", "placed": "s0/l0", "now": "s0/l7"}]
    assert "n1 was placed under s0/l0, its labels now say s0/l7" in " ".join(
        llmtrain("topology", *files)[1].split()
    )


def test_a_large_cluster_is_drawn_down_to_its_leaves(llmtrain: Shell, file: Any) -> None:
    files = ["--nodes", file("n", listed("Node", *tree(10, 30)))]
    out = llmtrain("topology", *files)[1]
    assert "leaf l9" in out and "node n" not in out
    assert "node n299" in llmtrain("topology", *files, "--depth", "node")[1]
    assert llmtrain("topology", *files, "--depth", "spine")[1].startswith("spine s0")
    code, _, err = llmtrain("topology", *files, "--depth", "row")
    assert code == 2 and "--depth row: no such level; use one of spine, leaf, node" in err


def test_300_leaves_in_natural_order(llmtrain: Shell, file: Any) -> None:
    nodes = [node(f"h{i}", spine="s", leaf=f"leaf-{i}") for i in reversed(range(300))]
    files = ["--nodes", file("n", listed("Node", *nodes)), "--depth", "leaf"]
    drawn = [
        line.split("leaf-")[1].split()[0]
        for line in llmtrain("topology", *files)[1].splitlines()
        if "leaf leaf-" in line
    ]
    assert drawn == [str(index) for index in range(300)]


def test_a_host_called_like_its_rack_and_no_nodes_at_all(llmtrain: Shell, file: Any) -> None:
    nodes = [node("r1", spine="r1", leaf="r1"), node("r2", spine="r1", leaf="r1")]
    out = llmtrain("topology", "--nodes", file("n", listed("Node", *nodes)))[1]
    assert out.splitlines()[:4] == [
        "spine r1  [........] 0/16  2 nodes",
        "└── leaf r1  [........] 0/16  2 nodes",
        "    ├── node r1  [........] 0/8",
        "    └── node r2  [........] 0/8",
    ]
    code, out, _ = llmtrain("topology", "--nodes", file("n", listed("Node")))
    assert code == 0 and out.startswith("no nodes")


@pytest.mark.parametrize(
    ("option", "items"),
    [
        ("--jobs", [stored({}) | {"status": {"placement": {"levels": [{}]}}}]),
        ("--pods", [seat(0, "n0") | {"spec": {"nodeName": "n0", "containers": [1]}}]),
    ],
)
def test_a_broken_list_is_named(llmtrain: Shell, file: Any, option: str, items: Any) -> None:
    kind = "Pod" if option == "--pods" else "LLMTrainingJob"
    files = [
        "--nodes",
        file("n", listed("Node", *tree(1, 1))),
        option,
        file("x", listed(kind, *items)),
    ]
    code, _, err = llmtrain("topology", *files)
    assert code == 2 and option in err and "unexpected object" in err
