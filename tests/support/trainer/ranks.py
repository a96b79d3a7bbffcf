"""Real ranks: forked from a parent that has imported torch, talking over loopback."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

LOOPBACK = "127.0.0.1"
FORK = multiprocessing.get_context("fork")


Body = Callable[[Any, int], Any]


@cache
def _import_trainer() -> None:
    """Import what ranks share, which takes seconds, and freeze it, as the launcher does."""
    import llmtrain_trainer.training.trainer  # noqa: F401

    gc.freeze()


def run_world(
    world: int, body: Callable[[int], Any], timeout: float = 120, killed: bool = False
) -> list[Any]:
    """Fork `world` ranks in one default process group; return what `body(rank)` returns in each.

    Where one is `killed`, their exit codes instead.
    """
    _import_trainer()
    from llmtrain_trainer.parallel.workarounds import renew_thread_pool
    from llmtrain_trainer.runtime.sockets import listen
    from llmtrain_trainer.worker.rendezvous import join, leave

    # It listens before the ranks are forked, so none of them has to wait and try again.
    listener, queue = listen(LOOPBACK, 0), FORK.Queue()
    master = listener.getsockname()[:2]

    def enter(rank: int) -> None:
        renew_thread_pool()
        code = 1
        try:
            wait = timedelta(seconds=60)
            if rank:
                listener.close()
            store = join(rank, world, LOOPBACK, master, wait, listener)
            result = body(rank)
            queue.put((rank, result, None))
            leave(store, rank, world, wait)
            code = 0
        except BaseException:
            queue.put((rank, None, traceback.format_exc()))
        queue.close()
        queue.join_thread()
        os._exit(code)

    ranks = [FORK.Process(target=enter, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    listener.close()
    if killed:
        for process in ranks:
            process.join(timeout)
            process.kill()
        return [process.exitcode for process in ranks]
    try:
        results = sorted((queue.get(timeout=timeout) for _ in ranks), key=lambda result: result[0])
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    failures = [error for _, _, error in results if error]
    assert not failures, failures[0]
    return [result for _, result, _ in results]


class Grids:
    """Grids of the jobs that one rank runs in turn. Those of one layout share process groups."""

    def __init__(self) -> None:
        self._built: dict[Any, Any] = {}

    def of(self, run: Any) -> Any:
        """Return the grid of a job; collective over all ranks where it is the first of its kind."""
        from llmtrain_trainer.parallel.mesh import Grid

        kind = run.layout, run.sync.replicas_per_rack
        if kind not in self._built:
            self._built[kind] = Grid.build(run.layout, "cpu", run.sync)
        return self._built[kind]


def run_trainers(
    spec: dict[str, Any],
    data: Any,
    body: Callable[[Any], Any],
    timeout: float = 120,
    killed: bool = False,
) -> list[Any]:
    """Build a `Trainer` on every rank of the job's layout and return what `body(trainer)` does.

    Everything a trainer sends is kept in its attribute `sent`.
    """
    import torch

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    run = from_spec("test", spec)

    def on_rank(rank: int) -> Any:
        sent: list[Any] = []
        trainer = Trainer(run, data, torch.device("cpu"), sent.append)
        trainer.sent = sent  # type: ignore[attr-defined]
        return body(trainer)

    return run_world(run.layout.world_size, on_rank, timeout, killed)


def parameter_hash(trainer: Any) -> str:
    """Hash of this rank's shards, bit for bit."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(trainer.model.named_parameters()):
        digest.update(name.encode())
        local = parameter.detach().to_local().contiguous()
        digest.update(local.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
