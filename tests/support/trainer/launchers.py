"""Launchers of a job, forked from this process, one per loopback address."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.support.trainer.ranks import FORK

_NETWORKS = itertools.count()


class Pods:
    """Launchers of one job, one per loopback address, forked from this process."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        degrees = spec["parallelism"]
        self.world = degrees["tensor"] * degrees["pipeline"] * degrees["data"]
        self.size = spec["workers"]["gpusPerNode"]
        self.folder, self.port = folder, 29500
        self._lock, self._prefix = _free_network()
        self.job = folder / "job.json"
        metadata = {"name": "test", "namespace": "lab"}
        self.job.write_text(json.dumps({"metadata": metadata, "spec": spec}))
        (folder / "gang-key").write_text(secrets.token_hex(32))
        self.processes: list[Any] = []

    def address(self, index: int) -> str:
        return f"{self._prefix}.{index + 1}"

    def environment(self, index: int) -> dict[str, str]:
        first = index * self.size
        work = self.folder / f"work-{index}"
        work.mkdir(exist_ok=True)
        return {
            "LLMTRAIN_JOB_FILE": str(self.job),
            "LLMTRAIN_RANKS": ",".join(map(str, range(first, first + self.size))),
            "LLMTRAIN_ATTEMPT": "0",
            "LLMTRAIN_POD_IP": self.address(index),
            "LLMTRAIN_NODE_NAME": f"node-{index}",
            "LLMTRAIN_PORT": "9400",
            "LLMTRAIN_WORK_DIR": str(work),
            "LLMTRAIN_TERMINATION_LOG": str(self.folder / f"termination-{index}"),
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": str(self.port),
            "WORLD_SIZE": str(self.world),
            "NODE_RANK": str(index),
            "LOCAL_WORLD_SIZE": str(self.size),
        }

    def fork(self, index: int) -> Any:
        """Start a launcher that shares this process's imports."""

        def enter() -> None:
            from llmtrain_trainer.launcher.launcher import main

            log = (self.folder / f"log-{index}").open("w")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = log, log
            os.environ.update(self.environment(index))
            code = 99
            try:
                code = main()
            except BaseException:
                traceback.print_exc()
            log.flush()
            os._exit(code)

        process = FORK.Process(target=enter)
        process.start()
        self.processes.append(process)
        return process

    def message(self, index: int) -> Any:
        path = self.folder / f"termination-{index}"
        return json.loads(path.read_text()) if path.exists() else None

    def log(self, index: int) -> str:
        return (self.folder / f"log-{index}").read_text()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(5)
        self._lock.close()


def _free_network() -> tuple[socket.socket, str]:
    """Return the first three bytes of loopback addresses that no other job has, and their lock.

    The lock is a bound socket, which other test processes respect. Networks are used in turn,
    because the ports of a job that has ended may still be in use.
    """
    start = os.getpid() * 7 + next(_NETWORKS)
    for third in range(start, start + 250):
        prefix = f"127.8.{third % 250 + 1}"
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind((f"{prefix}.254", 29500))
        except OSError:
            lock.close()
        else:
            return lock, prefix
    raise RuntimeError("all networks of 127.8.0.0/16 are in use")
