"""The ranks of a real job, one per node of the racks: sampled steps on request, or all steps."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmtrain_core.network.transfer_times import BLOCK_SAMPLES
from tests.support.network.racks import Racks
from tests.support.network.ranks import FORK, PATIENCE, WAIT
from tests.support.trainer.jobs import random_shards

Serve = Callable[[Any, list[Any], Any], None]
"""What a rank does with its trainer, the list of what that has sent, and the pipe to the test."""


class TrainerRanks:
    """Processes with a `Trainer` each. Rank 0 answers with what it sends to its launcher."""

    def __init__(self, pipes: Sequence[Any]):
        self._pipes = pipes

    def take_block(self) -> list[Any]:
        """Take the sampled steps of one block; return the reports of rank 0."""
        for pipe in self._pipes:
            pipe.send("block")
        return self.answers()[0]

    def answers(self, wait: timedelta = WAIT) -> list[list[Any]]:
        """Return the next answer of each rank."""
        found = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(wait.total_seconds()), f"rank {rank} is silent"
            kind, value = pipe.recv()
            assert kind == "done", value
            found.append(value)
        return found


def serve_blocks(trainer: Any, sent: list[Any], pipe: Any) -> None:
    """Connect the groups in a first step, then take a block of samples on each request."""
    from llmtrain_trainer.runtime.reports import TransferReport

    trainer.take_step()
    pipe.send(("done", []))
    while pipe.recv() == "block":
        sent.clear()
        for _ in range(BLOCK_SAMPLES):
            report = trainer.take_step(sampled=True)
            trainer.transfer_times.add_step(report.collectives)
        pipe.send(("done", [each for each in sent if isinstance(each, TransferReport)]))


def serve_training(trainer: Any, sent: list[Any], pipe: Any) -> None:
    """Train to the end, and answer with all that was sent."""
    trainer.train()
    pipe.send(("done", sent))
    pipe.recv()


@contextmanager
def trainers(
    racks: Racks,
    order: Sequence[int],
    spec: dict[str, Any],
    folder: Path,
    serve: Serve = serve_blocks,
) -> Iterator[TrainerRanks]:
    """Fork the ranks; `order[i]` is the node of rank i. The folder is for their data."""
    import llmtrain_trainer.training.trainer  # noqa: F401 - so that the children need not

    shards = random_shards(folder)
    pairs = [FORK.Pipe() for _ in order]
    processes = [
        FORK.Process(
            target=_enter,
            args=(racks, slot, rank, spec, shards, folder / "store", pairs[rank][1], serve),
            daemon=True,
        )
        for rank, slot in enumerate(order)
    ]
    for process in processes:
        process.start()
    try:
        ranks = TrainerRanks([pair[0] for pair in pairs])
        if serve is serve_blocks:
            ranks.answers()
        yield ranks
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def _enter(
    racks: Racks,
    slot: int,
    rank: int,
    spec: dict[str, Any],
    shards: Any,
    store: Path,
    pipe: Any,
    serve: Serve,
) -> None:
    from llmtrain_trainer.parallel.workarounds import renew_thread_pool

    try:
        renew_thread_pool()
        racks.enter(slot)
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
        sent: list[Any] = []
        serve(_trainer(racks, slot, rank, spec, shards, store, sent), sent, pipe)
    except EOFError:
        pass
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
    os._exit(0)


def _trainer(
    racks: Racks,
    slot: int,
    rank: int,
    spec: dict[str, Any],
    shards: Any,
    store: Path,
    sent: list[Any],
) -> Any:
    """Return the trainer of a rank, in a process group of all ranks."""
    import torch
    import torch.distributed as dist

    from llmtrain_trainer.job_spec import from_spec
    from llmtrain_trainer.training.trainer import Trainer

    connections = dist.FileStore(str(store), racks.nodes)
    connections.set_timeout(PATIENCE)
    dist.init_process_group(
        "gloo", store=connections, rank=rank, world_size=racks.nodes, timeout=PATIENCE
    )
    return Trainer(
        from_spec("test", spec), shards, torch.device("cpu"), sent.append, node=racks.node(slot)
    )
