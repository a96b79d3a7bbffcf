"""Run the trainer's launcher as a child process and read its status."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from llmtrain_cli.errors import CliError
from llmtrain_core.api import env
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.validation.check import Job

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1

Status = Mapping[str, Any]


class LocalRun:
    """One run of a job in a folder: `checkpoints/`, `log.txt` and `work/`."""

    def __init__(self, job: Job, folder: Path, die_with_parent: Callable[[int], None]) -> None:
        self.folder = folder
        self._log = (folder / "log.txt").open("ab")
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CliError(
                f"--output {folder}: another run uses it; wait for its end or name another folder"
            ) from error
        self._message = folder / "work" / "result.json"
        self._port, master = _free_ports(2)
        self._message.parent.mkdir(parents=True, exist_ok=True)
        self._message.unlink(missing_ok=True)
        job_file = folder / "work" / "job.json"
        document = {"metadata": {"name": job.name}, "spec": job.spec.to_wire()}
        job_file.write_text(json.dumps(document))
        _write_key(job_file.with_name(env.GANG_KEY_NAME))
        world = job.layout.world_size
        environment = {
            env.JOB_FILE: str(job_file),
            env.RANKS: ",".join(map(str, range(world))),
            env.POD_IP: LOOPBACK,
            env.NODE_NAME: "localhost",
            env.PORT: str(self._port),
            env.WORK_DIR: str(folder / "work"),
            env.MASTER_ADDR: LOOPBACK,
            env.MASTER_PORT: str(master),
            env.WORLD_SIZE: str(world),
            env.TERMINATION_LOG: str(self._message),
        }
        # In a new session, so that Ctrl-C reaches only this process, which forwards it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmtrain_trainer.launch"],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        self._opener = build_opener(ProxyHandler({}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.kill()
        self._process.wait()
        self._log.close()

    def stop(self) -> None:
        """Stop the run after a checkpoint (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the run. Ranks die with their launcher."""
        self._process.kill()

    def statuses(self) -> Iterator[Status]:
        """Yield statuses and, at the end, the result. Fast steps may be missed."""
        while not self._ended(POLL_SECONDS):
            if (status := self._status()) is not None:
                yield status
        _, result = self.result()
        if isinstance(result, Mapping):
            yield result

    def result(self) -> tuple[int, Status | FailureInfo | None]:
        """Return the exit code of a run that has ended, and its last status or its failure.

        None if the launcher left no termination message.
        """
        code = self._process.wait()
        try:
            text = self._message.read_text()
            document = json.loads(text)
        except (OSError, ValueError):
            text, document = "", {}
        result = document.get("result") or FailureInfo.from_termination_message(text)
        return (128 - code if code < 0 else code), result

    def _ended(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _status(self) -> Status | None:
        try:
            with self._opener.open(f"http://{LOOPBACK}:{self._port}/status", timeout=5) as answer:
                found: Status = json.load(answer)
                return found
        except (URLError, OSError, ValueError):
            return None  # not listening yet, or just ended


def _write_key(path: Path) -> None:
    """Write a new key of the gang, which other users of this computer cannot read."""
    path.unlink(missing_ok=True)
    path.touch(0o600, exist_ok=False)
    path.write_text(secrets.token_hex(32))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
