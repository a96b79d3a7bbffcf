"""The process of one rank: it joins the process group, trains, and reports why it failed."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch

from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.parallel.workarounds import renew_thread_pool
from llmtrain_trainer.runtime.exception_report import failure_of
from llmtrain_trainer.runtime.log_format import PodLogFormatter
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import PhaseReport, Send
from llmtrain_trainer.runtime.step_gate import StepGate
from llmtrain_trainer.training.trainer import Trainer
from llmtrain_trainer.worker.nccl_log import report_after_first_step, start_log
from llmtrain_trainer.worker.rendezvous import join, leave
from llmtrain_trainer.worker.stack_dump import StackReporter, pending_operations

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankTask:
    """Arguments of a rank's process."""

    rank: int
    local_rank: int
    pod: PodEnvironment
    run: RunConfig
    data: PreparedData
    gate: StepGate
    master: tuple[str, int]
    """Address of the rendezvous of this generation."""
    listener: socket.socket | None
    """Listens at that address; only for rank 0."""
    stack_file: Path
    """Where faulthandler writes the stacks of a rank that does not respond."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of the pod. NCCL reads them when the rank joins the group."""


def run_rank(task: RankTask, send: Send) -> int:
    """Train as one rank; report a failure, and return the exit code of the process."""
    renew_thread_pool()
    os.environ.update(task.variables, RANK=str(task.rank), LOCAL_RANK=str(task.local_rank))
    handler = logging.StreamHandler()
    handler.setFormatter(PodLogFormatter(f"%(asctime)s rank {task.rank} %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    reporter = StackReporter(task.rank, task.gate, send, task.stack_file)
    try:
        _train(task, send, reporter)
    except Exception as error:  # whatever it is, the launcher reports it
        failure = _with_operations(failure_of(error), reporter, task.gate.started)
        log.error("%s", "".join(traceback.format_exception(error)))
        send(failure)
        return failure.exit_code or EXIT_EXCEPTION
    return 0


def _with_operations(failure: FailureInfo, reporter: StackReporter, step: int) -> FailureInfo:
    """Add to a lost peer the unfinished collectives: the end of the flight recorder."""
    if failure.exit_code != EXIT_PEER_LOST:
        return failure
    pending = ", ".join(pending_operations(reporter.labels())[-4:]) or "nothing"
    text = f"{failure.message:.700} (in step {step}, unfinished: {pending})"
    return replace(failure, message=text)


def _train(task: RankTask, send: Send, reporter: StackReporter) -> None:
    timeout = timedelta(seconds=task.run.startup_timeout)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", task.local_rank)
        torch.cuda.set_device(device)
    pod = task.pod
    nccl_log = pod.work_dir / "nccl.log"
    if task.rank == 0 and device.type == "cuda" and start_log(nccl_log, os.environ):
        send = report_after_first_step(send, nccl_log, pod)
    send(PhaseReport("starting", 0))
    store = join(task.rank, pod.world_size, pod.pod_ip, task.master, timeout, task.listener)
    trainer = Trainer(task.run, task.data, device, send, work_dir=pod.work_dir, node=pod.node_name)
    reporter.labels = lambda: trainer.grid.labels
    trainer.train(task.gate)
    leave(store, task.rank, pod.world_size, timedelta(seconds=60))
