"""The command line with hostile files: one sentence, exit code 2, little time and memory."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmtrain_cli.main import run
from tests.support.cluster_documents import DOCUMENTS

pytestmark = pytest.mark.unit

MEMORY = 1 << 30
"""Address space of a command: the interpreter and its libraries need a quarter of it."""

SECONDS = 20
"""CPU time of a command. An idle machine needs one."""

MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

FILES = {
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "deep YAML": "- " * 100_000 + "x",
    "deep flow": "{a: " * 5_000 + "1" + "}" * 5_000,
    "long number": '{"a": ' + "9" * 5_000 + "}",
    "long YAML number": "a: " + "9" * 5_000,
    "long hexadecimal": "a: 0x" + "f" * 500_000,
    "long base 60": "a: " + ":".join(["59"] * 200_000),
    "infinite": '{"a": 1e999}',
    "no number": '{"a": NaN}',
    "cycle": "a: &a [*a]",
    "aliases": ALIASES,
    "merges": MERGES,
    "constructor": "a: !!python/object/apply:os.system ['true']",
    "binary": "a: !!binary aGk=",
    "list as key": "? [a]\n: 1",
    "number as key": "1: 2",
    "text": "just text",
    "nothing": "",
    "null characters": "\0" * 100,
    "escape": "a: \x1b]0;title\x07",
}


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def llmtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process with limits, as a user does."""
    return subprocess.run(
        [sys.executable, "-c", "from llmtrain_cli.main import run; run()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=_limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command in this process; return its exit code and what it says."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llmtrain", *arguments])
        with pytest.raises(SystemExit) as end:
            run()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_one_sentence_and_exit_code_2(
    name: str, tmp_path: Path, shell: Callable[..., tuple[int, str]]
) -> None:
    path = tmp_path / "file"
    path.write_text(FILES[name])
    good = tmp_path / "job"
    good.write_text(json.dumps(DOCUMENTS["job"]))
    start = time.process_time()
    for arguments in (
        ("plan", "-f", str(path)),
        ("place", "-f", str(good), "--nodes", str(path)),
        ("topology", "--nodes", str(path)),
        ("plan", "-f", str(good), "--calibration", str(path)),
    ):
        code, text = shell(*arguments)
        assert code == 2, (arguments, text)
        assert text.startswith("llmtrain: ") and len(text) < 2_000
        assert "Traceback" not in text and "\x1b" not in text
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/full"])
def test_a_file_without_end_takes_no_memory(device: str) -> None:
    answer = llmtrain("topology", "--nodes", device)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"llmtrain: {device}: ")


def test_text_without_end_takes_little_memory(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"exec yes > {pipe}"], stderr=subprocess.DEVNULL)
    try:
        answer = llmtrain("plan", "-f", str(pipe))
    finally:
        writer.kill()
        writer.wait()
    assert answer.returncode == 2, answer.stderr
    assert "longer than 4 MiB" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("layout", "--data", "100000000"),
        ("layout", "--data", "9" * 400, "--tensor", "9" * 400),
        ("layout", "--pipeline", "9" * 5_000),
        ("plan", "--model", "llama3-8b", "--tokens", "9" * 5_000, "--gpus", "8"),
        ("plan", "--model", "llama3-8b", "--tokens", "1e300", "--gpus", "9" * 400),
        ("run", "-f", "JOB", "--nproc", "1000000007"),
        ("run", "-f", "JOB", "--tensor", "1000000007"),
    ],
    ids=["ranks", "product", "digits", "tokens", "GPUs", "processes", "tensor"],
)
def test_a_huge_layout_is_refused_at_once(arguments: tuple[str, ...], tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text(json.dumps(DOCUMENTS["job"]))
    answer = llmtrain(*(str(job) if each == "JOB" else each for each in arguments))
    assert answer.returncode == 2, (answer.returncode, answer.stderr[-300:])
    assert "Traceback" not in answer.stderr


VALUES: list[Any] = [
    *(None, True, 5, -1, 1e300, 1 << 62, "x", "", "\x1b[31m", "9" * 5_000),
    *([], {}, [[]], ["x"], {"a": [1]}),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _places(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _places(part, (*path, index))


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    part = changed
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return changed


def test_a_value_of_any_type_in_any_field_is_no_traceback(
    tmp_path: Path, shell: Callable[..., tuple[int, str]]
) -> None:
    """A sample of all fields and values, the same one each time."""
    files = {name: tmp_path / name for name in DOCUMENTS}
    for name, document in DOCUMENTS.items():
        files[name].write_text(json.dumps(document))
    option = partial(lambda name: str(files[name]))
    commands = {
        "place": ["-f", "job", "--nodes", "nodes", "--pods", "pods", "--fabric", "fabric"],
        "topology": ["--nodes", "nodes", "--pods", "pods", "--jobs", "jobs", "--fabric", "fabric"],
        "plan": ["-f", "job", "--nodes", "nodes"],
    }
    cases = [
        (name, path, value)
        for name, document in DOCUMENTS.items()
        for path in _places(document)
        for value in VALUES
    ]
    for name, path, value in random.Random(15).sample(cases, 120):
        files[name].write_text(json.dumps(_replaced(DOCUMENTS[name], path, value)))
        for command, arguments in commands.items():
            if name in arguments:
                words = [option(each) if each in files else each for each in arguments]
                code, text = shell(command, *words)
                assert code in (0, 1, 2), (name, path, value, text)
                assert "\x1b" not in text
        files[name].write_text(json.dumps(DOCUMENTS[name]))
