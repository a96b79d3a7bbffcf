"""One rank: a process that joins the others, trains, and says why when it cannot."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST
from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.parallel.workarounds import renew_thread_pool
from llmtrain_trainer.runtime.failures import describe
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import PhaseReport, Send
from llmtrain_trainer.runtime.step_gate import Orders
from llmtrain_trainer.training.trainer import Trainer
from llmtrain_trainer.worker.rendezvous import join, leave
from llmtrain_trainer.worker.stack_dump import Witness, pending_operations

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankTask:
    """All a rank's process needs."""

    rank: int
    local_rank: int
    pod: PodEnvironment
    run: RunConfig
    data: PreparedData
    orders: Orders
    master: tuple[str, int]
    """Where the ranks of this generation meet."""
    listener: socket.socket | None
    """Listens there; rank 0's alone."""
    stack_file: Path
    """Where faulthandler writes what the rank cannot say."""


def run_rank(task: RankTask, send: Send) -> int:
    """Train as one rank; return the process's exit code. Failures are reported first."""
    renew_thread_pool()
    os.environ.update(RANK=str(task.rank), LOCAL_RANK=str(task.local_rank))
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s rank {task.rank} %(message)s",
        stream=sys.stderr,
        force=True,
    )
    witness = Witness(task.rank, task.orders, send, task.stack_file)
    try:
        _train(task, send, witness)
    except Exception as error:  # the border of the process: everything becomes a report
        failure = _with_operations(describe(error), witness, task.orders.started)
        log.error("%s", "".join(traceback.format_exception(error)))
        send(failure)
        return failure.exit_code or EXIT_EXCEPTION
    return 0


def _with_operations(failure: FailureInfo, witness: Witness, step: int) -> FailureInfo:
    """Say of a lost peer what was going on: the end of the flight recorder."""
    if failure.exit_code != EXIT_PEER_LOST:
        return failure
    pending = ", ".join(pending_operations(witness.labels)[-4:]) or "nothing"
    text = f"{failure.message:.700} (in step {step}, not ended: {pending})"
    return replace(failure, message=text)


def _train(task: RankTask, send: Send, witness: Witness) -> None:
    timeout = timedelta(seconds=task.run.startup_timeout)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", task.local_rank)
        torch.cuda.set_device(device)
    pod = task.pod
    send(PhaseReport("starting", 0))
    store = join(task.rank, pod.world_size, pod.pod_ip, task.master, timeout, task.listener)
    trainer = Trainer(task.run, task.data, device, send)
    witness.labels = trainer.grid.labels
    trainer.train(task.orders)
    leave(store, task.rank, pod.world_size, timedelta(seconds=60))
