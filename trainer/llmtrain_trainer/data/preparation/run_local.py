"""Run a plan with several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection, wait

from llmtrain_trainer.data.preparation.run import (
    PreparationProgress,
    Report,
    require_same_plan,
    run_share,
)
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.errors import TrainerError


def run_processes(work: Workspace, processes: int, report: Report = lambda _: None) -> None:
    """Run a plan with `processes` children. Raises the first error of any and stops the others."""
    require_same_plan(work)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if processes == 1:
        run_share(work, report=report)
        return
    context = multiprocessing.get_context("spawn")
    children, ends = [], []
    for index in range(processes):
        end, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_enter, args=(work, index, processes, theirs), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        ends.append(end)
    try:
        _follow(ends, report)
    finally:
        for child in children:
            child.terminate()
            child.join()


def _follow(ends: list[Connection], report: Report) -> None:
    """Read the messages of the children until each has finished."""
    working = list(ends)
    while working:
        for end in wait(working):
            assert isinstance(end, Connection)
            try:
                message = end.recv()
            except EOFError:
                raise RuntimeError("a process of the data step was killed") from None
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, PreparationProgress):
                report(message)
            else:
                working.remove(end)


def _enter(work: Workspace, index: int, count: int, end: Connection) -> None:
    def send(progress: PreparationProgress) -> None:
        if index == 0:  # the shares run in parallel, so one of them represents the progress
            end.send(progress)

    try:
        run_share(work, index, count, send)
        end.send("done")
    except (TrainerError, OSError) as error:
        end.send(error)
