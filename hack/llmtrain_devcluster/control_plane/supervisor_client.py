"""The client of the supervisor process that owns a cluster's components."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain_devcluster.paths import PACKAGE_PARENT
from llmtrain_devcluster.processes import start_time

ANSWER_SECONDS = 10.0
STOP_SECONDS = 15.0


class SupervisorClient:
    """Starts and ends components. The supervisor ends all of them when this process ends."""

    def __init__(self, folder: Path):
        self._events: list[dict[str, Any]] = []
        self._expected: set[str] = set()
        self._buffer = b""
        path = os.pathsep.join(filter(None, (str(PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
        with (folder / "supervisor.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "llmtrain_devcluster.supervisor",
                    str(folder),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
                cwd=folder,
                start_new_session=True,
            )
        self._started = start_time(self._process.pid) or 0

    @property
    def supervisor_pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a component and wait until it runs or its start has failed."""
        self._expected.discard(name)
        self._send({"start": {"name": name, "argv": list(argv), "env": dict(env or {})}})
        self._await(lambda event: event.get("name") == name)

    def pid(self, name: str) -> int | None:
        """Return the process id of a component that runs, else None."""
        self._receive(0)
        mine = [event for event in self._events if event.get("name") == name]
        return int(mine[-1]["pid"]) if mine and mine[-1]["event"] == "started" else None

    def deaths(self) -> list[tuple[str, int]]:
        """Return the components that ended unexpectedly and were not restarted."""
        self._receive(0)
        last = {event["name"]: event for event in self._events if "name" in event}
        died = [
            (name, int(event["code"]))
            for name, event in last.items()
            if event["event"] == "died" and name not in self._expected
        ]
        if self._process.poll() is not None:
            died.append(("supervisor", self._process.returncode))
        return died

    def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a component and wait for its end, which is then expected."""
        pid = self.pid(name)
        self._expected.add(name)
        if pid is not None:
            os.kill(pid, number)
            self._await(lambda event: event.get("name") == name and event["event"] == "died")

    def detach(self, remove_at_end: Sequence[Path]) -> tuple[int, int]:
        """Detach the supervisor; return its pid and start time."""
        self._send({"detach": [str(path) for path in remove_at_end]})
        self._await(lambda event: event["event"] == "detached")
        self._close_pipes()
        # The child keeps running: prevent the warning when this object is deleted.
        self._process.returncode = 0
        return self._process.pid, self._started

    def stop(self) -> None:
        """End all components and the supervisor."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._close_pipes()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def _await(self, wanted: Any) -> None:
        seen = len(self._events)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not any(wanted(event) for event in self._events[seen:]):
            if time.monotonic() > deadline or not self._receive(0.2):
                raise TimeoutError("the cluster's supervisor does not answer")

    def _receive(self, seconds: float) -> bool:
        """Read pending events; return False if the supervisor has closed the pipe."""
        stream = self._process.stdout
        assert stream is not None
        while select.select([stream], [], [], seconds)[0]:
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                return False
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            self._events += [json.loads(line) for line in lines]
            seconds = 0
        return True
