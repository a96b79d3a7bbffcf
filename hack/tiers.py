"""Run the tiers of `make test` in order and print the time of each; the first failure ends the run.

Static checks come first because they are the cheapest answer; what exercises the whole chain comes
last. `python hack/tiers.py lint unit` runs only the named ones. The table also has the
CPU time: a tier that takes more than half of it on two cores waits a part of the time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

from llmtrain_devcluster.paths import cache_root

PYTEST = [sys.executable, "-m", "pytest", "-q", "--durations=10", "--durations-min=10"]
FILES = ["--dist", "loadfile", "--no-loadscope-reorder"]
"""Workers take whole files, in the order of `tests/conftest.py`."""
OTHER_TIERS = "torch or cluster or e2e or perf or prometheus or kind or readme"
TIERS: dict[str, list[list[str]]] = {
    "lint": [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        [sys.executable, "hack/check_style.py"],
        ["lint-imports"],
        ["mypy"],
    ],
    "unit": [[*PYTEST, "-n", "2", "-m", f"not ({OTHER_TIERS})"]],
    "controlplane": [
        [sys.executable, "-m", "llmtrain_devcluster.control_plane.build"],
        [sys.executable, "-m", "tests.support.kueue.build"],
    ],
    # Four control planes on two cores, because most of the time is waiting.
    "cluster": [[*PYTEST, "-n", "4", *FILES, "-m", "cluster and not e2e"]],
    "torch": [
        [*PYTEST, "-n", "2", *FILES, "-m", "torch and not (serial or exhaustive)"],
        [*PYTEST, "-m", "torch and serial and not exhaustive"],
    ],
    "monitoring": [
        [sys.executable, "-m", "llmtrain_monitoring.prometheus"],
        # One file has all tests of the live cluster, so that it is started once.
        [*PYTEST, "-n", "2", *FILES, "-m", "prometheus"],
    ],
    "perf": [[*PYTEST, "-m", "perf", "-s"]],
    "e2e": [[*PYTEST, "-n", "2", *FILES, "-m", "e2e"]],
    "kind": [
        [sys.executable, "-m", "llmtrain_kind.binaries"],
        [sys.executable, "-m", "llmtrain_monitoring.prometheus"],
        # One process, because the machine has one Docker engine at a time.
        [*PYTEST, "-s", "-m", "kind"],
        [*PYTEST, "-s", "-m", "readme"],
    ],
}

BESIDE = {"kind": "unit"}
"""Tiers that run beside another one. The nodes of kind wait half of the time, and the unit tests do
not depend on time. The output is shown at the end."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a tier took, and the exit code of the command that ended it."""

    tier: str
    code: int
    seconds: float
    cpu_seconds: float


def main(names: list[str]) -> int:
    """Run the named tiers, all by default, and return the exit code."""
    unknown = [name for name in names if name not in TIERS]
    if unknown:
        print(f"tiers: no tier {unknown[0]!r}; there are {', '.join(TIERS)}", file=sys.stderr)
        return 2
    # Every process of the tests would compile torch again, which takes seconds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # mypy compares hashes of the sources, so all checkouts can share one cache.
    os.environ.setdefault("MYPY_CACHE_DIR", str(cache_root() / "mypy"))
    results: list[Result] = []
    start = time.monotonic()
    for group in _groups(names or [*TIERS]):
        results += _run_group(group)
        if any(result.code for result in results):
            break
    print("\ntier           seconds      CPU")
    for result in results:
        print(f"{result.tier:<14} {result.seconds:7.1f}  {result.cpu_seconds:7.1f}")
    cpu = sum(result.cpu_seconds for result in results)
    print(f"{'all':<14} {time.monotonic() - start:7.1f}  {cpu:7.1f}", flush=True)
    failed = [result for result in results if result.code]
    for result in failed:
        print(f"tiers: {result.tier} failed; run it alone with: python hack/tiers.py {result.tier}")
    return failed[0].code if failed else 0


def _groups(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the tiers that run at the same time."""
    beside = {name: other for name, other in BESIDE.items() if {name, other} <= {*names}}
    for name in names:
        if name not in beside:
            yield [name, *(other for other in beside if beside[other] == name)]


def _run_group(names: Sequence[str]) -> list[Result]:
    """Run tiers at the same time. Show the output of the first one now, that of the others then."""
    print("== " + " beside ".join(names), flush=True)
    with contextlib.ExitStack() as stack:
        others = {name: stack.enter_context(tempfile.TemporaryFile()) for name in names[1:]}
        threads = stack.enter_context(ThreadPoolExecutor())
        results = [*threads.map(lambda name: _run(name, others.get(name)), names)]
        for name, output in others.items():
            print(f"== output of {name}", flush=True)
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
    return results


def _run(name: str, output: IO[bytes] | None) -> Result:
    """Run the commands of a tier until one fails."""
    start, cpu, code = time.monotonic(), 0.0, 0
    for command in TIERS[name]:
        process = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        cpu += used.ru_utime + used.ru_stime
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code:
            break
    return Result(name, code, time.monotonic() - start, cpu)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
