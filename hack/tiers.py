"""Run the tiers of `make test` in order and print the time of each; the first failure ends the run.

Static checks come first because they are the cheapest answer; what exercises the whole chain comes
last. `python hack/tiers.py lint unit` runs only the named ones. The table also has the
CPU time: a tier that takes more than half of it on two cores waits a part of the time.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

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

TOGETHER = {"lint"}
"""Tiers whose commands run at the same time; each keeps one core busy."""


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
    took: dict[str, tuple[float, float]] = {}
    code = 0
    for name in names or TIERS:
        print(f"== {name}", flush=True)
        start, cpu = time.monotonic(), _cpu_seconds()
        code = _run_together(TIERS[name]) if name in TOGETHER else _run(TIERS[name])
        took[name] = time.monotonic() - start, _cpu_seconds() - cpu
        if code:
            break
    print("\ntier           seconds      CPU")
    for tier, (seconds, cpu) in took.items():
        print(f"{tier:<14} {seconds:7.1f}  {cpu:7.1f}")
    seconds, cpu = map(sum, zip(*took.values(), strict=True))
    print(f"{'all':<14} {seconds:7.1f}  {cpu:7.1f}", flush=True)
    if code:
        print(f"tiers: {name} failed; run it alone with: python hack/tiers.py {name}")
    return code


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_together(commands: list[list[str]]) -> int:
    """Run commands at the same time; show the output of each when it and those before it end."""
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    codes = []
    for process in started:
        output, _ = process.communicate()
        sys.stdout.buffer.write(output)
        sys.stdout.flush()
        codes.append(process.returncode)
    return next(filter(None, codes), 0)


def _run(commands: list[list[str]]) -> int:
    for command in commands:
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
