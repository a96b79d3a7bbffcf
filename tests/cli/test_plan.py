"""`llmtrain plan`, run through its command function in a typer app."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from llmtrain_cli.commands import plan
from llmtrain_cli.errors import CliError
from llmtrain_core.plan.model.model_shape import SHAPES
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

EXAMPLE = str(EXAMPLES / "llama3-8b.yaml")
LEAF = "network.topology.nvidia.com/leaf"

MODEL = ("--model", "llama3-8b", "--tokens", "1e12")

app = typer.Typer(pretty_exceptions_enable=False)
app.command("plan")(plan.command)


def llmtrain_plan(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def refused(*arguments: str) -> str:
    result = llmtrain_plan(*arguments)
    assert isinstance(result.exception, CliError), result.output
    return str(result.exception)


def _node(name: str, product: str = "NVIDIA-H100-80GB-HBM3", leaf: str = "leaf-1") -> dict:
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product, LEAF: leaf}},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@pytest.fixture
def nodes(tmp_path: Path) -> Callable[..., str]:
    def write(*items: dict) -> str:
        path = tmp_path / "nodes.json"
        path.write_text(json.dumps({"kind": "NodeList", "items": list(items)}))
        return str(path)

    return write


def test_a_job_as_json() -> None:
    result = llmtrain_plan("-f", EXAMPLE, "--gpu", "H100", "-o", "json")
    assert result.exit_code == 0, result.output
    wire = json.loads(result.stdout)
    assert wire["gpus"] == 64
    assert wire["memory"]["fits"] is True
    assert wire["communication"]["tp"]["operations"]["all_gather"]["count"] > 0


def test_the_model_of_the_source_document() -> None:
    result = llmtrain_plan(
        "--model",
        "gpt3-175b",
        "--tokens",
        "300e9",
        "--gpu",
        "V100",
        "--gpus",
        "10000",
        "-o",
        "json",
    )
    assert result.exit_code == 0, result.output
    wire = json.loads(result.stdout)
    assert wire["totalFlops"] == pytest.approx(3.15e23, rel=0.02)
    assert wire["gpus"] == 10000
    assert any("no published run of V100" in note for note in wire["assumptions"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("-f", EXAMPLE),
        *(
            ("--model", name, "--tokens", "15T", "--gpus", "2304", "--gpu", "GB300")
            for name in sorted(SHAPES)
        ),
        ("--model", "gpt3-175b", "--tokens", "300e9", "--gpu", "V100", "--gpus", "10000"),
        ("--model", "tiny", "--tokens", "1e6", "--gpus", "1"),
        ("--model", "tiny", "--tokens", "256", "--gpus", "1"),
        ("--model", "llama3-8b", "--tokens", "1e15", "--gpus", "524287"),
        (
            "--model",
            "llama3-8b",
            "--tokens",
            "1e15",
            "--gpus",
            "1",
            "--gpu",
            "GB300",
            "--sequence",
            "1024",
        ),
        (
            "--model",
            "llama3.1-405b",
            "--tokens",
            "1e15",
            "--gpus",
            "524288",
            "--restart-seconds",
            "1",
            "--save-seconds",
            "1",
        ),
        (
            "--model",
            "llama3-8b",
            "--tokens",
            "1e12",
            "--gpus",
            "64",
            "--sequence",
            "1048576",
            "--failures-per-node-day",
            "0",
            "--price",
            "1e9",
        ),
    ],
    ids=lambda arguments: " ".join(arguments).removeprefix("--model ")[-60:],
)
def test_text_fits_in_80_columns_and_shows_every_part(arguments: tuple[str, ...]) -> None:
    result = llmtrain_plan(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for word in ("MEMORY PER GPU", "STEP", "TIME", "COST", "STORAGE", "ASSUMED", "#"):
        assert word in result.stdout


@pytest.mark.parametrize("text", ["300e9", "300B", "0.3T", "300_000_000_000", "300000M"])
def test_tokens_accept_several_number_formats(text: str) -> None:
    result = llmtrain_plan("--model", "tiny", "--tokens", text, "--gpus", "8", "-o", "json")
    wire = json.loads(result.stdout)
    assert wire["totalFlops"] == wire["flopsPerToken"]["causalAttention"] * 300 * 10**9


def test_nodes_select_the_gpu_and_the_placement(nodes: Callable[..., str]) -> None:
    two = [_node(f"n{i}", "NVIDIA-H200", leaf=f"leaf-{i % 2}") for i in range(8)]
    flat = llmtrain_plan("-f", EXAMPLE, "--nodes", nodes(*two), "-o", "json")
    assert flat.exit_code == 0, flat.output
    text = llmtrain_plan("-f", EXAMPLE, "--nodes", nodes(*two))
    assert "64 x H200" in text.stdout
    assert "no placement" not in text.stdout


def test_tight_uplinks_of_a_fabric_slow_the_plan(nodes: Callable[..., str], tmp_path: Path) -> None:
    inventory = nodes(*[_node(f"n{i}", leaf=f"leaf-{i % 2}") for i in range(8)])
    seconds = []
    for oversubscription in (1, 16):
        fabric = tmp_path / f"fabric-{oversubscription}.yaml"
        leaf = {"name": "leaf", "nodeLabel": LEAF, "oversubscription": oversubscription}
        host = {"name": "node", "nodeLabel": "kubernetes.io/hostname"}
        fabric.write_text(yaml.safe_dump({"spec": {"levels": [leaf, host]}}))
        result = llmtrain_plan(
            "-f", EXAMPLE, "--nodes", inventory, "--fabric", str(fabric), "-o", "json"
        )
        assert result.exit_code == 0, result.output
        seconds.append(json.loads(result.stdout)["step"]["seconds"])
    assert seconds[1] > seconds[0]


def test_slow_interfaces_of_a_fabric_slow_the_plan(
    nodes: Callable[..., str], tmp_path: Path
) -> None:
    inventory = nodes(*[_node(f"n{i}", leaf=f"leaf-{i % 2}") for i in range(8)])
    levels = [
        {"name": "leaf", "nodeLabel": LEAF},
        {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
    ]
    found = []
    for gbits in (400, 25):
        fabric = tmp_path / f"fabric-{gbits}.yaml"
        spec = {"levels": levels, "nics": {"perNode": 8, "gbitsPerSecond": gbits}}
        fabric.write_text(yaml.safe_dump({"spec": spec}))
        result = llmtrain_plan(
            "-f", EXAMPLE, "--nodes", inventory, "--fabric", str(fabric), "-o", "json"
        )
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    fast, slow = found
    assert slow["step"]["seconds"] > fast["step"]["seconds"]
    assert slow["step"]["collectives"]["dp"] > 8 * fast["step"]["collectives"]["dp"]
    assert "3.125 GB/s per GPU to other nodes: the Fabric's nics" in slow["assumptions"]


def test_nodes_count_the_gpus_of_a_model(nodes: Callable[..., str]) -> None:
    result = llmtrain_plan(
        "--model",
        "llama3-8b",
        "--tokens",
        "1e12",
        "--nodes",
        nodes(_node("a"), _node("b")),
        "-o",
        "json",
    )
    assert json.loads(result.stdout)["gpus"] == 16


def test_a_job_over_memory_exits_with_1_and_names_the_limit_and_a_fix(tmp_path: Path) -> None:
    document = yaml.safe_load(Path(EXAMPLE).read_text())
    document["spec"]["model"] = {"preset": "llama3-70b"}
    document["spec"]["training"] |= {"activationCheckpointing": "none", "microBatchSize": 4}
    document["spec"]["parallelism"] = {"tensor": 8, "data": 8}
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(document))
    result = llmtrain_plan("-f", str(path))
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "tp8·dp8 needs" in result.stderr
    assert "of H100's 79.6 GiB" in result.stderr
    assert "; set training." in result.stderr
    assert "workers.nodes" not in result.stderr, "the number of GPUs does not change"


def test_a_job_with_the_suggested_changes_fits(tmp_path: Path) -> None:
    """One hint adds all the GPUs that 405 billion parameters on one GPU need."""
    document = yaml.safe_load(Path(EXAMPLE).read_text())
    document["spec"]["model"] = {"preset": "llama3.1-405b"}
    document["spec"]["training"] |= {"globalBatchSize": 1024, "microBatchSize": 1}
    document["spec"]["parallelism"] = {"data": 1}
    document["spec"]["workers"] = {"gpusPerNode": 1, "image": "example.com/trainer:1"}
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(document))
    refused = llmtrain_plan("-f", str(path))
    assert refused.exit_code == 1
    assert re.search(r"workers\.nodes for [0-9]+ GPUs", refused.stderr)
    for section, field, value in re.findall(
        r"(workers|training|parallelism)\.([a-zA-Z]+) to ([a-z0-9]+)", refused.stderr
    ):
        document["spec"][section][field] = int(value) if value.isdecimal() else value
    path.write_text(yaml.safe_dump(document))
    assert llmtrain_plan("-f", str(path)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-f", EXAMPLE, "--tokens", "1e9"), "--tokens beside -f: the job's spec.training"),
        (("-f", EXAMPLE, "--days", "3"), "--days beside -f: .* use --gpus N"),
        (("-f", EXAMPLE, "--sequence", "9"), "--sequence beside -f: the job's spec.model"),
        (("-f", EXAMPLE, "--batch", "9"), "--batch beside -f: .*globalBatchSize"),
        (("-f", EXAMPLE, "--fabric", "zones"), "--fabric without --nodes"),
        ((*MODEL, "--gpus", "8", "--fabric", "zones"), "--fabric beside --model"),
        ((*MODEL, "--days", "3", "--gpus", "8"), "--days beside --gpus: .* drop one"),
        ((*MODEL, "--days", "3", "--nodes", "n"), "--days beside --nodes: .* drop one"),
        ((*MODEL, "--gpus", "8", "--nodes", "n"), "--gpus beside --nodes: .* drop one"),
        ((*MODEL, "--gpus", "8", "--price", "nan"), "--price nan: use 0 or more"),
        ((*MODEL, "--gpus", "8", "--price", "inf"), "--price inf: use 0 or more"),
        ((*MODEL, "--gpus", "8", "--price", "-5"), "--price -5: use 0 or more"),
        ((*MODEL, "--gpus", "8", "--save-seconds", "0"), "--save-seconds 0"),
        ((*MODEL, "--gpus", "8", "--failures-per-node-day", "nan"), "--failures-per-node-day nan"),
        ((*MODEL, "--gpus", "8", "--gpu", ""), "no GPU is named ''; known are V100"),
        ((*MODEL, "--gpus", "8", "--gpu", "TPU"), "no GPU is named 'TPU'; known are V100"),
        ((*MODEL, "--gpus", "8", "--batch", "1000000000000"), "use a batch of at most 122070312"),
        (
            ("--model", "gpt3-175b", "--tokens", "1e12", "--gpus", "1024", "--sequence", "100000"),
            "2,048 learned positions; use at most 2048",
        ),
        ((*MODEL, "--days", "inf"), "--days inf: use more than 0"),
        ((), "give either a job with -f, or --model with --tokens"),
        (("-f", EXAMPLE, *MODEL), "give either"),
        (("--model", "llama3-8b", "--gpus", "8"), "--model needs --tokens"),
        ((*MODEL, "--gpus", "0"), "0 GPUs are not between 1 and"),
        ((*MODEL, "--gpus", "-8"), "-8 GPUs are not between"),
        (("--model", "llama3-8b", "--tokens", "1e30", "--gpus", "8"), r"use 1e\+15"),
        (("--model", "llama3-8b", "--tokens", "nan", "--gpus", "8"), "not a number"),
        (("--model", "llama3-8b", "--tokens", "inf", "--gpus", "8"), "not a number"),
        (("--model", "llama3-8b", "--tokens", "many", "--gpus", "8"), "not a number"),
        (("--model", "llama4", "--tokens", "1e9", "--gpus", "8"), "no model is named 'llama4'"),
        ((*MODEL,), "use --gpus N or --days D"),
        ((*MODEL, "--gpus", "8", "--sequence", "0"), "--sequence 0"),
        ((*MODEL, "--gpus", "8", "--batch", "0"), "--batch 0"),
        ((*MODEL, "--days", "0"), "--days 0"),
        ((*MODEL, "--days", "nan"), "--days nan"),
        ((*MODEL, "--gpus", "8", "-o", "xml"), "neither text nor json"),
        (("--model", "llama3.1-405b", "--tokens", "1e12", "--gpus", "8"), "use at least"),
        (("-f", EXAMPLE, "--gpus", "100"), "use 96"),
        (("-f", "/nowhere.yaml"), "cannot be read"),
    ],
)
def test_invalid_input_is_rejected_with_the_cause_and_the_remedy(
    arguments: tuple[str, ...], words: str
) -> None:
    assert re.search(words, refused(*arguments))


def test_unusable_nodes_are_rejected(nodes: Callable[..., str]) -> None:
    mixed = nodes(_node("a"), _node("b", "NVIDIA-H200"))
    assert "several GPU types, H100, H200; pass --gpu" in refused(*MODEL, "--nodes", mixed)
    plain = nodes(_node("a", "NVIDIA-GeForce-RTX-4090"))
    said = refused(*MODEL, "--nodes", plain)
    assert "(their values: NVIDIA-GeForce-RTX-4090); known are V100" in said
    assert said.endswith("pass --gpu")
    few = nodes(_node("a"))
    assert "the job does not fit" in refused("-f", EXAMPLE, "--nodes", few)
    assert "drop one of the two" in refused("-f", EXAMPLE, "--nodes", few, "--gpus", "8")
    assert "no node has GPUs" in refused(*MODEL, "--nodes", nodes())
    assert "no usable node: nodes left out: 1 cordoned" in refused(
        *MODEL, "--nodes", nodes(_node("a") | {"spec": {"unschedulable": True}})
    )
    few = nodes(_node("a"))
    said = refused(*MODEL, "--nodes", few, "--gpu", "H200")
    assert said == "--gpu H200: no usable node of --nodes has it; they have H100"


def test_only_usable_nodes_with_the_planned_gpu_are_used(nodes: Callable[..., str]) -> None:
    """The assumptions list the nodes that were left out."""
    away, closed = _node("b"), _node("c") | {"spec": {"unschedulable": True}}
    away["status"]["conditions"][0]["status"] = "False"
    inventory = nodes(
        _node("a"), away, closed, _node("d", "NVIDIA-H200"), _node("e", "NVIDIA-GeForce-RTX-4090")
    )
    result = llmtrain_plan(*MODEL, "--nodes", inventory, "--gpu", "H100", "-o", "json")
    assert result.exit_code == 0, result.output
    wire = json.loads(result.stdout)
    assert wire["gpus"] == 8
    assert [note for note in wire["assumptions"] if "left out" in note] == [
        "nodes left out: 1 not ready",
        "nodes left out: 1 cordoned",
        "nodes left out: 1 with H200",
        "nodes left out: 1 with no known GPU in the labels",
    ]


def test_a_job_is_placed_on_nodes_of_the_planned_gpu_only(nodes: Callable[..., str]) -> None:
    mixed = [_node(f"n{i}", "NVIDIA-H200" if i % 2 else "NVIDIA-H100-80GB-HBM3") for i in range(16)]
    result = llmtrain_plan("-f", EXAMPLE, "--nodes", nodes(*mixed), "--gpu", "H200", "-o", "json")
    assert result.exit_code == 0, result.output
    assert "nodes left out: 8 with H100" in json.loads(result.stdout)["assumptions"]
    said = refused("-f", EXAMPLE, "--nodes", nodes(*mixed[:-2]), "--gpu", "H200")
    assert "the job does not fit" in said
    assert "nodes left out: 7 with H100" in said


def test_nodes_without_a_known_gpu_label_use_the_gpu_option(nodes: Callable[..., str]) -> None:
    plain = nodes(_node("a", "NVIDIA-GeForce-RTX-4090"), _node("b", "NVIDIA-GeForce-RTX-4090"))
    result = llmtrain_plan(*MODEL, "--nodes", plain, "--gpu", "H100", "-o", "json")
    wire = json.loads(result.stdout)
    assert (wire["gpus"], wire["hardware"]) == (16, "H100")
    assert "nodes that name no known GPU, assumed to have H100 (--gpu): 2" in wire["assumptions"]


def test_a_run_that_never_finishes_is_reported_with_a_remedy() -> None:
    """524,287 GPUs fail again before they have recovered."""
    arguments = ("--model", "llama3-8b", "--tokens", "1e15", "--gpus", "524287")
    text = " ".join(llmtrain_plan(*arguments).stdout.split())
    assert "NEVER DONE with failures: one every 348 s" in text
    assert "what helps: fewer GPUs, or restarts within 276 s (--restart-seconds)" in text
    assert "COST unknown, because the run never finishes" in text
    wire = json.loads(llmtrain_plan(*arguments, "-o", "json").stdout)
    assert wire["cost"]["dollars"] is None
    quick = llmtrain_plan(*arguments, "--restart-seconds", "60", "-o", "json")
    assert json.loads(quick.stdout)["cost"]["dollars"] > 0
    assert any("a restart takes 60 s" in note for note in json.loads(quick.stdout)["assumptions"])


def test_rows_of_other_layouts_are_distinct() -> None:
    arguments = ("--model", "llama3-70b", "--tokens", "1e12", "--gpus", "64")
    lines = llmtrain_plan(*arguments).stdout.splitlines()
    start, end = (
        lines.index(next(li for li in lines if li.startswith("OTHER"))),
        lines.index("ASSUMED"),
    )
    rows: list[str] = []
    for line in lines[start + 1 : end]:
        if line.startswith("    "):
            rows[-1] += line
        else:
            rows.append(line)
    assert len(rows) > 1
    alternatives = json.loads(llmtrain_plan(*arguments, "-o", "json").stdout)["alternatives"]
    assert len(alternatives) == len(rows)
    for row, other in zip(rows, alternatives, strict=True):
        if other["parallelism"]["pipeline"] > 1:
            assert other["parallelism"]["pipelineSchedule"] in row
