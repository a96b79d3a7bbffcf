"""`llmtrain place`: the JSON, the text, the exit codes, and what bad input is told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_files import LEAF, SPINE, Shell, job, listed, node, pod, tree
from tests.support.node_lists import FOLDER
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

KEYS = {
    "fits",
    "nodes",
    "spares",
    "network",
    "cost",
    "domains",
    "crossings",
    "reasons",
    "alternative",
}


def test_the_json_has_exactly_the_promised_keys(llmtrain: Shell, file: Callable[..., str]) -> None:
    nodes = tree()
    random.Random(3).shuffle(nodes)
    files = [
        "-f",
        file("job.yaml", job(6), True),
        "--nodes",
        file("n", listed("Node", *nodes)),
    ]
    code, out, _ = llmtrain("place", *files, "-o", "json")
    found = json.loads(out)
    assert code == 0 and found["fits"] is True
    assert found.keys() == KEYS
    assert sorted(rank for n in found["nodes"] for rank in n["ranks"]) == list(range(48))
    assert all(n["path"].keys() == {"spine", "leaf", "node"} for n in found["nodes"])
    assert found["domains"] == {"spine": 1, "leaf": 2, "node": 6}
    assert found["crossings"].keys() == {"spine", "leaf", "node"}
    assert found["cost"].keys() == {"seconds", "idealSeconds", "byGroup"}
    assert found["cost"]["seconds"] >= found["cost"]["idealSeconds"] > 0
    assert all(isinstance(reason, str) and reason for reason in found["reasons"])


def test_a_job_that_does_not_fit_exits_with_one_and_says_why(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = [
        "-f",
        file("job", job(2)),
        "--nodes",
        file("n", listed("Node", *tree(1, 2))),
        "--pods",
        file("p", listed("Pod", pod("p", "n1", 1))),
    ]
    code, out, _ = llmtrain("place", *files)
    assert code == 1
    assert out.startswith("does not fit: InsufficientGpus\n")
    assert "1 nvidia.com/gpu in use" in " ".join(out.split())
    code, out, _ = llmtrain("place", *files, "-o", "json")
    found = json.loads(out)
    assert code == 1 and found["fits"] is False and found["nodes"] == []
    assert "1 nvidia.com/gpu in use" in found["reasons"][0]


def test_the_missing_resource_of_every_node_is_named(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    nodes = tree(1, 3)
    nodes[0]["status"]["allocatable"]["cpu"] = "1"
    nodes[1]["spec"]["taints"] = [{"key": "team", "value": "x", "effect": "NoSchedule"}]
    manifest = job(2)
    manifest["spec"]["workers"]["resources"] = {"requests": {"cpu": 4, "memory": "2Gi"}}
    busy = pod("p", "n2", 0)
    busy["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "95"}}
    files = ["--nodes", file("n", listed("Node", *nodes)), "--pods", file("p", listed("Pod", busy))]
    expected = {
        "n0": "cpu 4 requested, 1 free",
        "n1": "taint not tolerated",
        "n2": "cpu 4 requested, 1 free",
    }
    code, out, _ = llmtrain("place", "-f", file("job", manifest), *files)
    words = " ".join(out.split())
    assert code == 1 and "NODES WHERE NO POD OF THE JOB CAN START" in out
    assert all(f"{name}: {text}" in words for name, text in expected.items())
    found = json.loads(llmtrain("place", "-f", file("job", manifest), *files, "-o", "json")[1])
    assert found["obstacles"] == expected
    code, out, _ = llmtrain("topology", "-f", file("job", manifest), *files)
    assert code == 0 and out.count("cannot start here: cpu 4 requested, 1 free") == 2
    out = llmtrain("topology", "-f", file("job", manifest), *files, "-o", "json")[1]
    assert {n["name"]: n["obstacles"] for n in json.loads(out)["nodes"]} == expected


def test_nodes_of_another_network_are_named_by_both_commands(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    nodes = tree(1, 3)
    for each in nodes[:2]:
        each["status"]["allocatable"]["vpc.amazonaws.com/efa"] = "4"
    busy = pod("p", "n1", 0)
    busy["spec"]["containers"][0]["resources"] = {"limits": {"vpc.amazonaws.com/efa": "1"}}
    files = ["--nodes", file("n", listed("Node", *nodes)), "--pods", file("p", listed("Pod", busy))]
    manifest = file("job", job(3))
    found = json.loads(llmtrain("place", "-f", manifest, *files, "-o", "json")[1])
    assert found["obstacles"] == {
        "n1": "vpc.amazonaws.com/efa 4 requested, 3 free",
        "n2": "has another network: tcp; vpc.amazonaws.com/efa 4 requested, 0 free",
    }
    listing = json.loads(llmtrain("topology", "-f", manifest, *files, "-o", "json")[1])
    shown = {n["name"]: n["obstacles"] for n in listing["nodes"]}
    assert shown == {"n0": "", **found["obstacles"]}


def test_the_text_fits_into_80_columns(llmtrain: Shell, file: Callable[..., str]) -> None:
    long = "a-rather-long-name-of-a-node-as-clouds-give-them.internal-"
    nodes = [
        node(f"{long}{index}", spine="spine-" + "x" * 50, leaf=f"leaf-{index // 4}-" + "y" * 50)
        for index in range(8)
    ]
    files = ["-f", file("job", job(8)), "--nodes", file("n", listed("Node", *nodes))]
    code, out, _ = llmtrain("place", *files)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for part in ("RANKS", "COMMUNICATION PER STEP", "GROUPS THAT SPAN", "WHY", "####"):
        assert part in out
    assert "56-63" in out and "\x1b" not in out


def test_many_nodes_are_cut_in_text_and_whole_in_json(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = ["-f", file("job", job(70, 1)), "--nodes", file("n", listed("Node", *tree(4, 20)))]
    assert "and 6 more nodes (-o json prints all)" in llmtrain("place", *files)[1]
    assert len(json.loads(llmtrain("place", *files, "-o", "json")[1])["nodes"]) == 70


def test_names_are_text_and_never_markup(llmtrain: Shell, file: Callable[..., str]) -> None:
    nodes = [node("[red]n0[/]", leaf="機架:eyes:\x1b[31m")]
    files = ["-f", file("job", job(1)), "--nodes", file("n", listed("Node", *nodes))]
    out = llmtrain("place", *files)[1]
    assert "[red]n0[/]" in out and "機架:eyes:" in out and "\x1b" not in out


def test_a_preset_a_file_and_no_fabric(llmtrain: Shell, file: Callable[..., str]) -> None:
    files = ["-f", file("job", job(1)), "--nodes", file("n", listed("Node", *tree(1, 1)))]

    def levels(*more: str) -> list[str]:
        return list(json.loads(llmtrain("place", *files, *more, "-o", "json")[1])["domains"])

    assert levels() == ["spine", "leaf", "node"], "a preset's core that nobody has is left out"
    assert levels("--fabric", "topograph-legacy") == ["spine", "leaf", "node"]
    own = {
        "kind": "Fabric",
        "spec": {
            "levels": [
                {"name": "room", "nodeLabel": SPINE},
                {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
            ]
        },
    }
    assert levels("--fabric", file("fabric.yaml", own, True)) == ["room", "node"]
    example = EXAMPLES / "fabric.yaml"
    assert levels("--fabric", str(example)) == ["spine", "leaf", "node"]


def test_a_fabric_that_only_a_cluster_knows_is_told(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    files = ["-f", file("job", job(1, fabric="own")), "--nodes", file("n", listed("Node", *tree()))]

    def reasons(*more: str) -> str:
        return json.loads(llmtrain("place", *files, *more, "-o", "json")[1])["reasons"][-1]

    assert reasons().startswith("the job's Fabric 'own' was not read")
    assert "was not read" not in reasons("--fabric", "topograph-legacy")


def test_the_rates_of_a_fabric_count(llmtrain: Shell, file: Callable[..., str]) -> None:
    files = ["-f", file("job", job(8)), "--nodes", file("n", listed("Node", *tree(2, 4)))]

    def seconds(over: float, gbits: float) -> float:
        fabric = {
            "spec": {
                "levels": [
                    {"name": "leaf", "nodeLabel": LEAF, "oversubscription": over},
                    {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
                ],
                "nics": {"perNode": 8, "gbitsPerSecond": gbits},
            }
        }
        answer = llmtrain("place", *files, "--fabric", file("fabric", fabric), "-o", "json")
        return float(json.loads(answer[1])["cost"]["byGroup"]["data"])

    assert seconds(1, 100) == pytest.approx(4 * seconds(1, 400))
    assert seconds(64, 400) > 2 * seconds(1, 400)


def test_a_gain_below_the_tolerance_does_not_take_more_domains(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    """The gain of a few ms per step takes two nodes of each of four leaves."""
    found = job(8)
    found["spec"]["parallelism"] = {"tensor": 8, "data": 4, "pipeline": 2}
    fabric = {
        "spec": {
            "levels": [
                {"name": "leaf", "nodeLabel": LEAF, "oversubscription": 4},
                {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
            ]
        }
    }
    nodes = file("n", listed("Node", *tree()))
    files = ["-f", file("job", found), "--nodes", nodes, "--fabric", file("fabric", fabric)]

    def leaves(*flags: str) -> int:
        found = json.loads(llmtrain("place", *files, *flags, "-o", "json")[1])
        return int(found["domains"]["leaf"])

    assert leaves() == leaves("--domain-tolerance", "0.01") == 2
    assert leaves("--domain-tolerance", "0") == 4
    code, _, error = llmtrain("place", *files, "--domain-tolerance", "1")
    assert code == 2 and "domain-tolerance" in error


def test_labels_that_bear_on_the_job_are_among_the_reasons(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    nodes = [
        *tree(2, 2),
        node("bare", spine="s0"),
        node("empty", spine="s0", leaf=""),
        node("no-gpu", 0, spine="s0"),
        node("twin", spine="s9", leaf="l0"),
    ]
    files = ["-f", file("job", job(2)), "--nodes", file("n", listed("Node", *nodes)), "-o", "json"]
    reasons = json.loads(llmtrain("place", *files)[1])["reasons"]
    said = [reason for reason in reasons if "label" in reason or "under" in reason]
    assert said == [
        f"1 node with no label {LEAF} (bare): each is treated as a separate leaf",
        f"1 node with an empty or unknown label {LEAF} (empty): each is treated as a separate leaf",
        "leaf l0 is under 2 domains (s0, s9): treated as 2 separate domains",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--fabric": "nowhere"}, ["--fabric nowhere", "presets are aws"]),
        ({"--nodes": "absent.json"}, ["absent.json", "cannot be read"]),
        ({"--nodes": {"kind": "NodeList"}}, ["the list has no items", "kubectl get -o json"]),
        ({"--nodes": listed("Node", {"kind": "Pod"})}, ["items[0] is not a Node"]),
        (
            {"--nodes": listed("Node", node("a"), node("b"), node("a"))},
            ["items[0] and items[2] are both the Node 'a'", "keep one"],
        ),
        ({"--nodes": {"items": [{}]}}, ["items[0] has no metadata.name"]),
        (
            {"--nodes": listed("Node", {"metadata": {"name": "n"}, "spec": {"taints": [{}]}})},
            ["--nodes", "unexpected object"],
        ),
        (
            {"--fabric": {"spec": {"levels": [{"name": "leaf", "nodeLabel": "x y"}]}}},
            ["the Fabric is not valid", "levels[0].nodeLabel"],
        ),
        ({"--fabric": {"spec": {"preset": "no-such"}}}, ["spec.preset", "use one of aws"]),
        ({"-f": job(0)}, ["job is not valid", "spec."]),
    ],
)
def test_bad_input_exits_with_two_and_names_field_and_remedy(
    llmtrain: Shell, file: Callable[..., str], change: dict[str, Any], expected: list[str]
) -> None:
    given: dict[str, Any] = {"-f": job(1), "--nodes": listed("Node", *tree(1, 1))} | change
    arguments = [
        text
        for index, (option, value) in enumerate(given.items())
        for text in (option, value if isinstance(value, str) else file(f"file-{index}", value))
    ]
    code, out, err = llmtrain("place", *arguments)
    assert code == 2 and out == ""
    assert all(part in err for part in expected), err


def test_a_list_needs_no_kind(llmtrain: Shell, file: Callable[..., str]) -> None:
    code, out, _ = llmtrain(
        "place",
        "-f",
        file("job", job(2)),
        "--nodes",
        file("n", {"items": tree(1, 2)}),
        "-o",
        "json",
    )
    assert code == 0 and [n["name"] for n in json.loads(out)["nodes"]] == ["n0", "n1"]


def test_pods_of_one_name_in_two_namespaces_are_two(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    here, there = pod("p", "n0", 4), pod("p", "n0", 4)
    there["metadata"]["namespace"] = "other"
    files = ["-f", file("job", job(1, 4)), "--nodes", file("n", listed("Node", *tree(1, 1)))]
    code, out, _ = llmtrain("place", *files, "--pods", file("p", listed("Pod", here, there)))
    assert code == 1 and "InsufficientGpus" in out
    code, _, err = llmtrain("place", *files, "--pods", file("p2", listed("Pod", here, here)))
    assert code == 2 and "are both the Pod 'p'" in err


def test_gpus_that_are_too_small_are_left_out_as_in_a_cluster(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    large = job(2)
    del large["spec"]["workers"]["command"]
    large["spec"] |= {
        "model": {"preset": "gpt3-175b"},
        "data": {"sources": [{"name": "text", "uri": "file:///data"}]},
        "training": {"steps": 100, "globalBatchSize": 8, "microBatchSize": 1},
    }
    nodes = tree(1, 2)
    for each in nodes:
        each["metadata"]["labels"]["nvidia.com/gpu.product"] = "NVIDIA-H100-80GB-HBM3"
    given = ["--nodes", file("n", listed("Node", *nodes))]
    code, out, _ = llmtrain("place", "-f", file("large", large), *given)
    assert code == 1 and "2 GPU memory too small" in out
    large["metadata"]["annotations"] = {"llmtrain.dev/allow-over-memory": "true"}
    assert llmtrain("place", "-f", file("allowed", large), *given)[0] == 0
    assert llmtrain("place", "-f", file("small", job(2)), *given)[0] == 0


def test_pods_alone_make_no_cluster(llmtrain: Shell, file: Callable[..., str]) -> None:
    code, _, err = llmtrain("place", "-f", file("job", job(1)), "--pods", file("p", listed("Pod")))
    assert code == 2 and "--pods: needs --nodes too" in err


def test_without_nodes_and_without_kubectl_the_remedy_is_named(
    llmtrain: Shell, file: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (["place", "-f", file("job", job(1))], ["topology"]):
        code, _, err = llmtrain(*command)
        assert code == 2
        assert "kubectl: not on the PATH" in err and "--nodes FILE" in err


def test_the_network_of_the_gang_is_shown_with_who_set_what(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    recorded = str(FOLDER / "aws-p5.yaml")
    named = job(2)
    named["spec"]["network"] = {"profile": "efa", "nccl": {"NCCL_DEBUG": "INFO"}}
    arguments = ["-f", file("job.yaml", named, True), "--nodes", recorded]
    code, out, _ = llmtrain("place", *arguments, "-o", "json")
    found = json.loads(out)["network"]
    assert code == 0 and found["row"] == "aws-efa"
    assert found["fact"] == "allocatable vpc.amazonaws.com/efa: 32"
    assert found["topologyPreset"] == "aws"
    setters = {item["name"]: (item["value"], item["setBy"]) for item in found["settings"]}
    assert setters["hugepages-2Mi"] == ("5120Mi", "aws-efa")
    assert setters["NCCL_NET"] == ("AWS Libfabric", "spec.network.profile")
    assert setters["NCCL_DEBUG"] == ("INFO", "spec.network.nccl")
    code, out, _ = llmtrain("place", *arguments)
    assert code == 0 and "NETWORK  aws-efa: allocatable vpc.amazonaws.com/efa: 32" in out
    assert "Resource vpc.amazonaws.com/efa=32, set by aws-efa" in out


def test_slices_of_the_nodes_are_read_with_them(llmtrain: Shell, file: Callable[..., str]) -> None:
    arguments = ["-f", file("job.yaml", job(2), True), "--nodes", str(FOLDER / "dranet.yaml")]
    code, out, _ = llmtrain("place", *arguments, "-o", "json")
    found = json.loads(out)["network"]
    assert code == 0 and found["row"] == "tcp"
    assert found["notes"][0].startswith("dra (ResourceSlice of driver dra.net) is not used")


def test_a_profile_that_no_node_has_is_reported_with_the_nearest(
    llmtrain: Shell, file: Callable[..., str]
) -> None:
    named = job(2)
    named["spec"]["network"] = {"profile": "efa"}
    nodes = str(FOLDER / "coreweave-h100.yaml")
    arguments = ["-f", file("job.yaml", named, True), "--nodes", nodes]
    code, out, _ = llmtrain("place", *arguments, "-o", "json")
    found = json.loads(out)
    assert code == 1 and found["network"] is None and found["reason"] == "NetworkMismatch"
    (finding,) = [text for text in found["reasons"] if text.startswith("spec.network.profile")]
    assert finding.endswith(
        "left out: 2 has coreweave-infiniband by resource rdma/ib, not efa (use network.profile"
        " infiniband or auto)"
    )
