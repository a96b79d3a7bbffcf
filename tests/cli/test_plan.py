"""`llmtrain plan`, run through its command function as the command line mounts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from llmtrain_cli import plan
from llmtrain_cli.errors import CliError

pytestmark = pytest.mark.unit

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "llama3-8b.yaml")
LEAF = "network.topology.nvidia.com/leaf"

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
        "--model", "gpt3-175b", "--tokens", "300e9", "--gpu", "V100", "--gpus", "10000",
        "-o", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    wire = json.loads(result.stdout)
    assert wire["totalFlops"] == pytest.approx(3.15e23, rel=0.02)
    assert wire["gpus"] == 10000
    assert any("no published run of V100" in note for note in wire["assumptions"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("-f", EXAMPLE),
        ("--model", "gpt3-175b", "--tokens", "300e9", "--gpu", "V100", "--gpus", "10000"),
        ("--model", "llama3.1-405b", "--tokens", "15T", "--gpu", "GB200", "--gpus", "2304"),
        ("--model", "tiny", "--tokens", "1e6", "--gpus", "1"),
    ],
    ids=["job", "gpt3", "405b", "tiny"],
)
def test_text_fits_in_80_columns_and_shows_every_part(arguments: tuple[str, ...]) -> None:
    result = llmtrain_plan(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for word in ("MEMORY PER GPU", "STEP", "TIME", "COST", "STORAGE", "ASSUMED", "#"):
        assert word in result.stdout


@pytest.mark.parametrize("text", ["300e9", "300B", "0.3T", "300_000_000_000", "300000M"])
def test_tokens_may_be_written_in_several_ways(text: str) -> None:
    result = llmtrain_plan("--model", "tiny", "--tokens", text, "--gpus", "8", "-o", "json")
    wire = json.loads(result.stdout)
    assert wire["totalFlops"] == wire["flopsPerToken"]["causalAttention"] * 300 * 10**9


def test_nodes_choose_the_gpu_and_the_placement(nodes: Callable[..., str]) -> None:
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


def test_nodes_count_the_gpus_of_a_model(nodes: Callable[..., str]) -> None:
    result = llmtrain_plan(
        "--model", "llama3-8b", "--tokens", "1e12", "--nodes", nodes(_node("a"), _node("b")),
        "-o", "json",
    )  # fmt: skip
    assert json.loads(result.stdout)["gpus"] == 16


def test_a_job_over_memory_exits_with_one_and_names_limit_and_nearest(tmp_path: Path) -> None:
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
    assert "recomputation needs" in result.stderr


MODEL = ("--model", "llama3-8b", "--tokens", "1e12")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either a job with -f, or --model with --tokens"),
        (("-f", EXAMPLE, *MODEL), "give either"),
        (("--model", "llama3-8b", "--gpus", "8"), "--model needs --tokens"),
        ((*MODEL, "--gpus", "0"), "0 GPUs are not between 1 and"),
        ((*MODEL, "--gpus", "-8"), "-8 GPUs are not between"),
        (("--model", "llama3-8b", "--tokens", "1e30", "--gpus", "8"), "use 1e+15"),
        (("--model", "llama3-8b", "--tokens", "nan", "--gpus", "8"), "not a number"),
        (("--model", "llama3-8b", "--tokens", "inf", "--gpus", "8"), "not a number"),
        (("--model", "llama3-8b", "--tokens", "many", "--gpus", "8"), "not a number"),
        (("--model", "llama4", "--tokens", "1e9", "--gpus", "8"), "no model is named 'llama4'"),
        ((*MODEL, "--gpu", "TPU", "--gpus", "8"), "no GPU is named 'TPU'"),
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
def test_bad_input_names_what_is_wrong_and_what_to_do(
    arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(*arguments)


def test_bad_nodes(nodes: Callable[..., str]) -> None:
    mixed = nodes(_node("a"), _node("b", "NVIDIA-H200"))
    assert "several GPU types, H100, H200; pass --gpu" in refused(*MODEL, "--nodes", mixed)
    plain = nodes(_node("a", "NVIDIA-GeForce-RTX-4090"))
    assert "pass --gpu" in refused(*MODEL, "--nodes", plain)
    few = nodes(_node("a"))
    assert "the job does not fit" in refused("-f", EXAMPLE, "--nodes", few)
    assert "drop one of the two" in refused("-f", EXAMPLE, "--nodes", few, "--gpus", "8")
