"""The parent process of a cluster's components. It ends them when its owner ends.

`python -m llmtrain_devcluster.supervisor FOLDER OWNER_PID` reads one JSON command a line on stdin:

    {"start": {"name": ..., "argv": [...], "env": {...}}}   start it, log to FOLDER/NAME.log
    {"detach": [PATH, ...]}                                 continue without an owner; at the end
                                                            also remove these files

and writes one JSON event a line on stdout: `started` (with the pid) and `died` (with the code).
End of input, SIGTERM or the end of the owner end all components and remove FOLDER. The kernel kills
the components if this process is killed. Only the standard library: it starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmtrain_devcluster.processes import adopt_orphans, children, die_with_parent, start_time

POLL_SECONDS = 0.1
STOP_SECONDS = 1.0
DEATHS = "deaths.txt"


class Supervisor:
    """Starts components, watches them and ends them."""

    def __init__(self, folder: Path, owner: int):
        self._folder = folder
        self._owner = owner
        self._owner_started = start_time(owner)
        self._components: dict[str, subprocess.Popen[bytes]] = {}
        self._detached = False
        self._extra_files: list[Path] = []
        self._stopping = False
        self._input = b""

    def run(self) -> None:
        """Run until the end of the owner, of the input or a signal; then clean up."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            while not self._stopping and self._owner_lives():
                self._read_commands()
                self._reap()
        finally:
            self._end_all()
            shutil.rmtree(self._folder, ignore_errors=True)
            for path in self._extra_files:
                path.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = True

    def _owner_lives(self) -> bool:
        """Return True while the owner runs: its forked children may keep our stdin open."""
        return self._detached or start_time(self._owner) == self._owner_started

    def _read_commands(self) -> None:
        if self._detached:
            time.sleep(POLL_SECONDS)
            return
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if not readable:
            return
        chunk = os.read(0, 65536)
        if not chunk:
            self._stopping = True
            return
        *lines, self._input = (self._input + chunk).split(b"\n")
        for line in lines:
            self._handle_command(json.loads(line))

    def _handle_command(self, command: dict[str, Any]) -> None:
        if "start" in command:
            self._start(command["start"])
        elif "detach" in command:
            self._extra_files = [Path(path) for path in command["detach"]]
            self._detached = True
            self._emit(event="detached")

    def _start(self, component: dict[str, Any]) -> None:
        name = component["name"]
        with (self._folder / f"{name}.log").open("ab") as log:
            try:
                process = subprocess.Popen(
                    component["argv"],
                    env=os.environ | component.get("env", {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                log.write(f"cannot start {component['argv'][0]}: {error}\n".encode())
                self._emit(event="died", name=name, code=127)
                return
        self._components[name] = process
        self._emit(event="started", name=name, pid=process.pid)

    def _reap(self) -> None:
        for name, process in list(self._components.items()):
            code = process.poll()
            if code is not None:
                del self._components[name]
                self._emit(event="died", name=name, code=code)
                with (self._folder / DEATHS).open("a") as deaths:
                    deaths.write(f"{name} ended with code {code}\n")

    def _emit(self, **event: Any) -> None:
        with suppress(OSError):  # no reader once the owner has ended or has detached
            os.write(1, (json.dumps(event) + "\n").encode())

    def _end_all(self) -> None:
        """End components in reverse order of their start."""
        for process in reversed(self._components.values()):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in reversed(self._components.values()):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_orphans()

    def _end_orphans(self) -> None:
        """End orphans of the components, which have this process as their subreaper."""
        for _ in range(50):
            left = children(os.getpid())
            if not left:
                return
            for pid in left:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def main() -> None:
    """Run as a program."""
    adopt_orphans()
    Supervisor(Path(sys.argv[1]), int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
