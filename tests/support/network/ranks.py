"""Eight torch processes, one per node of the racks, that run one case after another."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.network.racks import NODES, Racks

FORK = multiprocessing.get_context("fork")
PATIENCE = timedelta(seconds=90)
"""Of a process group; shorter than what the test waits, so that a rank can still say what hung."""
WAIT = timedelta(seconds=120)
Work = Callable[[], None]
"""What a rank sends in one go."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case: bytes that each rack sent to the other, and the slowest rank's time."""

    uplink_bytes: tuple[int, ...]
    seconds: float


class Ranks:
    """Processes that wait in their namespaces. `order[i]` is the node of rank i."""

    def __init__(self, racks: Racks, pipes: Sequence[Any]):
        self._racks = racks
        self._pipes = pipes

    def measure(self, case: str, order: Sequence[int], build: Callable[[], Work]) -> Measured:
        """Form the group in this order of nodes, warm up, then count what one go sends."""
        assert sorted(order) == list(range(NODES))
        self._all((case, tuple(order), build))
        before = self._racks.sent()
        seconds = self._all("go")
        after = self._racks.sent()
        sent = tuple(b - a for a, b in zip(before, after, strict=True))
        return Measured(sent, max(seconds))

    def _all(self, message: Any) -> list[float]:
        for pipe in self._pipes:
            pipe.send(message)
        answers = []
        for slot, pipe in enumerate(self._pipes):
            assert pipe.poll(WAIT.total_seconds()), f"node {slot} is silent"
            kind, value = pipe.recv()
            assert kind == "done", value
            answers.append(value)
        return answers


@contextmanager
def launched(racks: Racks, folder: Path) -> Iterator[Ranks]:
    """Fork one process per node, with torch imported once for all of them."""
    import torch.distributed  # noqa: F401 - so that the children need not

    pairs = [FORK.Pipe() for _ in range(NODES)]
    processes = [
        FORK.Process(target=_enter, args=(racks, slot, pairs[slot][1], folder), daemon=True)
        for slot in range(NODES)
    ]
    for process in processes:
        process.start()
    try:
        yield Ranks(racks, [pair[0] for pair in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def _enter(racks: Racks, slot: int, pipe: Any, folder: Path) -> None:
    from llmtrain_trainer.parallel.workarounds import renew_thread_pool

    try:
        renew_thread_pool()
        racks.enter(slot)
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
        while True:
            case, order, build = pipe.recv()
            _one(case, order.index(slot), build, pipe, folder)
    except EOFError:
        pass
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
    os._exit(0)


def _one(case: str, rank: int, build: Callable[[], Work], pipe: Any, folder: Path) -> None:
    """Run one case. The store is a file: the rendezvous sends nothing over the racks.

    Of its own for every case, because the last rank to leave a store removes the file, and with it
    what a faster one has written for the next.
    """
    import torch.distributed as dist

    store = dist.FileStore(str(folder / case), NODES)
    store.set_timeout(PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NODES, timeout=PATIENCE)
    work = build()
    work()
    pipe.send(("done", 0.0))
    assert pipe.recv() == "go"
    start = time.perf_counter()
    work()
    pipe.send(("done", time.perf_counter() - start))
    dist.destroy_process_group()
