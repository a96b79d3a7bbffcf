"""Slow down one rank of a job in the live cluster by stopping its process most of the time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtrain_devcluster.processes import children

STOPPED_SECONDS, RUNNING_SECONDS = 0.3, 0.1


@contextmanager
def slow_rank(instance: str, gpu: int) -> Iterator[None]:
    """Let the rank on a GPU of a target run for a quarter of the time until the block ends."""
    (launcher,) = _launchers(instance.rpartition(":")[0])
    rank = sorted(children(launcher))[gpu]
    ended = threading.Event()
    thread = threading.Thread(target=_brake, args=(rank, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _brake(pid: int, ended: threading.Event) -> None:
    while not ended.is_set():
        os.kill(pid, signal.SIGSTOP)
        ended.wait(STOPPED_SECONDS)
        os.kill(pid, signal.SIGCONT)
        ended.wait(RUNNING_SECONDS)


def _launchers(address: str) -> list[int]:
    """Return the launchers of the pod with an address: its trainer processes with children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"llmtrain_trainer.launch" in command
            and f"LLMTRAIN_POD_IP={address}".encode() in environment
        ):
            found.append(int(folder.name))
    ranks = {child for pid in found for child in children(pid)}
    return [pid for pid in found if pid not in ranks and children(pid)]
