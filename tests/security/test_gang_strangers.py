"""Strangers at every port of a gang that trains: it goes on without a restart."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.jobs import job_spec
from tests.support.trainer.launchers import Pods

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

HANG = 240
"""Seconds after which a wait is given up."""
STRANGER = "127.9.9.9"
IDLE = 1500
USUAL_LIMIT = 1024
"""Open files that a process may usually have before it asks for more."""

Listener = tuple[str, int]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Pods]:
    """A gang of two pods with a rank each, which would train for a long time."""
    import llmtrain_trainer.launcher.worker_group  # noqa: F401 - forked launchers start at once

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        words = [f"word{(number * 31 + i * i) % 97}" for i in range(400)]
        (corpus / f"{number}.txt").write_text(" ".join(words) + "\n")
    spec = job_spec(
        data=2,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=1,
        checkpoint={"uri": f"file://{tmp_path}/saved", "everySteps": 5},
        training={"steps": 1_000_000},
        architecture={"layers": 1},
    )
    pods = Pods(tmp_path, spec)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL_LIMIT, soft), hard))
    try:
        for index in range(2):
            pods.fork(index)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield pods
    pods.stop()


def _status(pods: Pods) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{pods.address(0)}:9400/status", timeout=5) as page:
            return json.loads(page.read())  # type: ignore[no-any-return]
    except OSError:
        return {}


def _trains_on(pods: Pods, steps: int) -> None:
    """Wait for more steps and a checkpoint after them, without a restart."""
    wanted: int | None = None
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and all(p.is_alive() for p in pods.processes):
        status = _status(pods)
        assert not status.get("restartsInPlace"), status
        if status:
            wanted = wanted or (status["step"] or 0) + steps
            if (status["lastCheckpointStep"] or 0) >= wanted:
                return
        time.sleep(0.05)
    raise AssertionError(f"{_status(pods)}\n{pods.log(0)[-3000:]}\n{pods.log(1)[-3000:]}")


def _ranks(pods: Pods) -> set[int]:
    launchers = {process.pid for process in pods.processes}
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) in launchers:
                found.add(int(entry.parent.name))
    return found


def _listeners(pid: int) -> set[Listener]:
    """Addresses at which a process accepts connections."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            host, port = fields[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)))
    return found


def _connect(listener: Listener, stack: ExitStack, seconds: float = HANG) -> socket.socket:
    connection = stack.enter_context(socket.socket())
    connection.bind((STRANGER, 0))
    connection.settimeout(seconds)
    connection.connect(listener)
    return connection


def _answers(listener: Listener) -> bool:
    with ExitStack() as stack:
        try:
            _connect(listener, stack, 0.5)
        except TimeoutError:
            return False
    return True


def _send_false_proof(coordinator: Listener) -> None:
    """Send a false proof, and then the events that a launcher sends after a valid one."""
    hello = os.urandom(64) + b'{"ranks":[0],"kind":"registered"}\n{"kind":"stop-requested"}\n'
    with ExitStack() as stack:
        connection = _connect(coordinator, stack)
        connection.sendall(hello)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass


def test_a_gang_trains_on_while_strangers_hold_its_ports(two: Pods) -> None:
    """1,500 idle connections to each port, garbage, and messages of a launcher without its key."""
    _trains_on(two, 1)
    coordinator = (two.address(0), two.port)
    http = {(two.address(index), 9400) for index in range(2)}
    launchers = set().union(*(_listeners(process.pid) for process in two.processes))
    assert launchers == {coordinator, *http}
    of_ranks = [_listeners(rank) for rank in _ranks(two)]
    (store,) = (one for one in set().union(*of_ranks) if one[0] == two.address(0))
    assert not _answers(store)
    gloo = {min(listeners - {store}) for listeners in of_ranks}
    assert len(gloo) == 2
    with ExitStack() as stack:
        for listener in (coordinator, *http, *gloo):
            strangers = [_connect(listener, stack) for _ in range(IDLE)]
            for connection in strangers[-10:]:
                with contextlib.suppress(OSError):
                    connection.sendall(os.urandom(10_000))
        _send_false_proof(coordinator)
        _trains_on(two, 5)
    assert "rejected connections" in two.log(0)
