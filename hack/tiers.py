"""Run the tiers of `make test` and print the time of each; the first failure ends the run.

Static checks come first because they are the cheapest answer; the benchmarks come last.
`python hack/tiers.py lint unit` runs only the named ones. The table also has the CPU time: a tier
that takes more than half of it on two cores waits a part of the time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
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
    "unit": [[*PYTEST, "-n", "2", "-m", f"not ({OTHER_TIERS} or exhaustive)"]],
    "controlplane": [
        [sys.executable, "-m", "llmtrain_devcluster.control_plane.build"],
        [sys.executable, "-m", "tests.support.kueue.build"],
    ],
    # More control planes than cores, because most of the time is waiting.
    "cluster": [[*PYTEST, "-n", "3", *FILES, "-m", "cluster and not e2e"]],
    # Ranks of several processes wait for each other, and tests for what takes time to be noticed.
    "torch": [[*PYTEST, "-n", "3", *FILES, "-m", "torch and not (serial or exhaustive)"]],
    "serial": [[*PYTEST, "-m", "torch and serial and not exhaustive"]],
    "monitoring": [
        [sys.executable, "-m", "llmtrain_monitoring.prometheus"],
        [sys.executable, "-m", "llmtrain_pictures.bundle"],
        # One file has all tests of the live cluster, so that it is started once.
        [*PYTEST, "-n", "2", *FILES, "-m", "prometheus"],
    ],
    "e2e": [[*PYTEST, "-n", "2", *FILES, "-m", "e2e"]],
    "perf": [[*PYTEST, "-m", "perf", "-s"]],
    "kind": [
        [sys.executable, "-m", "llmtrain_kind.binaries"],
        [sys.executable, "-m", "llmtrain_monitoring.prometheus"],
        [sys.executable, "-m", "llmtrain_pictures.bundle"],
        [*PYTEST, "-s", "-m", "kind"],
    ],
    "readme": [
        [sys.executable, "-m", "llmtrain_kind.binaries"],
        [*PYTEST, "-s", "-m", "readme"],
    ],
}

STAGES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("lint",),),
    (("controlplane", "cluster", "monitoring", "e2e", "torch"), ("unit",), ("kind", "readme")),
    (("serial",),),
    (("perf",),),
)
"""Stages, one after another. The lanes of a stage run at the same time, the tiers of a lane in
order. Clusters wait most of the time, so their tiers run beside the unit tests, which compute. The
torch tier does not: its many ranks would keep the API servers waiting until operators lose their
Lease. Both tiers with a Docker engine are in one lane, because the machine has one engine at a
time. The serial and perf tiers need the whole machine."""


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
    start = time.monotonic()
    results = _run_tiers(names or [*TIERS])
    print("\ntier           seconds      CPU")
    for result in results:
        print(f"{result.tier:<14} {result.seconds:7.1f}  {result.cpu_seconds:7.1f}")
    cpu = sum(result.cpu_seconds for result in results)
    print(f"{'all':<14} {time.monotonic() - start:7.1f}  {cpu:7.1f}", flush=True)
    failed = [result for result in results if result.code]
    for result in failed:
        print(f"tiers: {result.tier} failed; run it alone with: python hack/tiers.py {result.tier}")
    return failed[0].code if failed else 0


def _run_tiers(names: Collection[str]) -> list[Result]:
    """Run the stages, with the named tiers only, until one fails."""
    results: list[Result] = []
    for stage in STAGES:
        lanes = [[tier for tier in lane if tier in names] for lane in stage]
        results += _run_stage([lane for lane in lanes if lane])
        if any(result.code for result in results):
            break
    return results


def _run_stage(lanes: Sequence[Sequence[str]]) -> list[Result]:
    """Run lanes at the same time. Show the output of all but the first at the end.

    After a failure no tier starts, and those that run come to their end.
    """
    if not lanes:
        return []
    failed = threading.Event()
    first, *others = lanes
    with ThreadPoolExecutor() as threads, contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in others]
        beside = [
            threads.submit(_run_lane, lane, output, failed)
            for lane, output in zip(others, outputs, strict=True)
        ]
        results = _run_lane(first, None, failed)
        for lane, future, output in zip(others, beside, outputs, strict=True):
            results += future.result()
            print(f"== output of {', '.join(lane)}", flush=True)
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.flush()
    return results


def _run_lane(
    lane: Sequence[str], output: IO[bytes] | None, failed: threading.Event
) -> list[Result]:
    """Run the tiers of a lane in order, until one of any lane fails."""
    results: list[Result] = []
    for name in lane:
        if failed.is_set():
            break
        # One write, because lanes print at the same time.
        print(f"== {name}{' beside' if output else ''}\n", end="", flush=True)
        results.append(_run(name, output))
        if results[-1].code:
            failed.set()
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
