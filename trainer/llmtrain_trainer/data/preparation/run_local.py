"""Run a plan with several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from llmtrain_trainer.data.preparation.run import (
    PreparationProgress,
    Report,
    require_same_plan,
    run_share,
)
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.tokenizer import endless_tokenizer
from llmtrain_trainer.errors import TrainerError


def run_processes(
    work: Workspace,
    processes: int,
    report: Report = lambda _: None,
    index: int | None = None,
) -> None:
    """Run a plan with `processes` children. Raises the first error of any and stops the others.

    With `index`, run only that share of `processes`. It is a child, too: the limits of
    `tokenizer.cpu_limit` end a process.
    """
    require_same_plan(work)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("spawn")
    children: dict[Connection, BaseProcess] = {}
    shares = range(processes) if index is None else (index,)
    for share in shares:
        end, theirs = context.Pipe(duplex=False)
        args = (work, share, processes, theirs, share == shares[0])
        child = context.Process(target=_enter, args=args, daemon=True)
        child.start()
        theirs.close()
        children[end] = child
    try:
        _follow(children, work, report)
    finally:
        for each in children.values():
            each.terminate()
            each.join()


def _follow(children: Mapping[Connection, BaseProcess], work: Workspace, report: Report) -> None:
    """Read the messages of the children until each has finished."""
    working = list(children)
    while working:
        for end in wait(working):
            assert isinstance(end, Connection)
            try:
                message = end.recv()
            except EOFError:
                children[end].join()
                if children[end].exitcode == -signal.SIGVTALRM:
                    raise endless_tokenizer(str(work.plan.tokenizer)) from None
                raise RuntimeError("a process of the data step was killed") from None
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, PreparationProgress):
                report(message)
            else:
                working.remove(end)


def _enter(work: Workspace, index: int, count: int, end: Connection, reports: bool) -> None:
    def send(progress: PreparationProgress) -> None:
        if reports:  # the shares run in parallel, so one of them represents the progress
            end.send(progress)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    try:
        run_share(work, index, count, send)
        end.send("done")
    except (TrainerError, OSError) as error:
        end.send(error)
