"""A new user's way through the README: from `make kind-up` to a finished job and back.

The commands are those of the page. They run in one shell, as a user would type them. The test needs
a process of its own: a Docker engine that another test holds would keep `make kind-up` waiting.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.readme, pytest.mark.timeout(3600)]

SECTION = "## A cluster on this machine"
LAST = "make kind-down"
ENV = 'eval "$(make -s kind-env)"'
FINISHED = "__finished__"
"""Printed by the shell after each command, with its exit code."""


def commands() -> list[str]:
    """Return the commands of the section, without their comments."""
    text = (ROOT / "README.md").read_text("utf-8").partition(f"\n{SECTION}\n")[2]
    found = re.findall(r"^    \$ (.+)$", text.partition("\n## ")[0], re.M)
    return [command.partition(" # ")[0].strip() for command in found]


class Shell:
    """A shell with the environment of a user who has installed nothing."""

    def __init__(self) -> None:
        env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        own = str(Path(sys.prefix) / "bin")
        env["PATH"] = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if p != own)
        self._process = subprocess.Popen(
            ["bash"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """Run a command, print its output, and return it."""
        assert self._process.stdin and self._process.stdout
        started = time.monotonic()
        show(f"$ {command}")
        self._process.stdin.write(f"{command}\necho {FINISHED} $?\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            text, mark, code = line.rstrip("\n").partition(FINISHED)
            if text or not mark:
                lines.append(text)
                show(f"  {text}")
            if mark:
                break
        else:
            pytest.fail(f"the shell ended: {command}")
        show(f"  ({time.monotonic() - started:.0f} s)")
        assert code.strip() == "0", f"{command}:\n" + "\n".join(lines[-20:])
        return "\n".join(lines)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)


def show(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A shell; there is no cluster before, and none after it."""
    shell = Shell()
    with pytest.raises(AssertionError, match="there is no cluster"):
        shell.run("make -s kind-env")
    yield shell
    shell.run(LAST)
    shell.close()


def test_from_nothing_to_a_finished_job_and_back(shell: Shell) -> None:
    wanted = commands()
    assert len(wanted) >= 6 and wanted[1] == ENV and wanted[-1] == LAST, wanted
    started = time.monotonic()
    shown = {command: shell.run(command) for command in wanted}
    show(f"the path of a new user took {time.monotonic() - started:.0f} s")
    (table,) = (text for command, text in shown.items() if command.startswith("kubectl get "))
    assert re.search(r"^two-nodes +Succeeded ", table, re.M), table
