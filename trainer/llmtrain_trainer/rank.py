"""One rank: a process that joins the others, trains, and says why when it cannot."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from dataclasses import dataclass
from datetime import timedelta

import torch

from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.environment import PodEnvironment
from llmtrain_trainer.failures import describe
from llmtrain_trainer.parallel.workarounds import renew_thread_pool
from llmtrain_trainer.rendezvous import join, leave
from llmtrain_trainer.reports import PhaseReport, Send
from llmtrain_trainer.train import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankTask:
    """All a rank's process needs."""

    rank: int
    local_rank: int
    pod: PodEnvironment
    run: RunConfig
    data: PreparedData


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
    try:
        _train(task, send)
    except Exception as error:  # the border of the process: everything becomes a report
        failure = describe(error)
        log.error("%s", "".join(traceback.format_exception(error)))
        send(failure)
        return failure.exit_code
    return 0


def _train(task: RankTask, send: Send) -> None:
    timeout = timedelta(seconds=task.run.startup_timeout)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", task.local_rank)
        torch.cuda.set_device(device)
    pod = task.pod
    send(PhaseReport("starting", 0))
    store = join(task.rank, pod.world_size, pod.pod_ip, (pod.master_addr, pod.master_port), timeout)
    Trainer(task.run, task.data, device, send).train()
    leave(store, task.rank, pod.world_size, timedelta(seconds=60))
