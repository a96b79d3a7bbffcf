"""This pod's ranks, generation after generation, as the gang's launchers agree on them."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.launcher.restart.failure_cause import rank_failure
from llmtrain_trainer.launcher.restart.messages import (
    Done,
    End,
    Explain,
    Failed,
    Finish,
    Held,
    Hold,
    Patience,
    Ready,
    Restart,
    Silent,
    Start,
    Stated,
)
from llmtrain_trainer.launcher.restart.transport import Link
from llmtrain_trainer.launcher.status_tracker import Progress
from llmtrain_trainer.metrics.gpu_use import UtilizationProbe
from llmtrain_trainer.runtime.child_process import Child
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import Statement, StepReport
from llmtrain_trainer.runtime.step_gate import Orders
from llmtrain_trainer.worker.main import RankTask, run_rank
from llmtrain_trainer.worker.stack_dump import written_stack

PROBE_SECONDS = 2.0
WATCH_SECONDS = 0.25
ANSWER_SECONDS = 1.0
"""For a rank to say what it is doing; then for faulthandler to write it."""

TakeListener = Callable[[], socket.socket | None]
"""Hands over the socket on which rank 0 serves the store of its generation; None elsewhere."""


@dataclass(slots=True)
class _Rank:
    """One rank's process in one generation."""

    number: int
    child: Child
    orders: Orders
    heard: float
    """When it last showed progress, on the event loop's clock."""
    stepped: bool = False
    failure: FailureInfo | None = None
    statement: Statement | None = None
    code: int | None = None
    """How it ended."""


@dataclass(slots=True)
class Crew:
    """The ranks of this pod."""

    pod: PodEnvironment
    run: RunConfig
    data: PreparedData
    link: Link
    progress: Progress
    probe: UtilizationProbe
    take_listener: TakeListener
    generation: int = 0
    ranks: list[_Rank] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def work(self) -> End:
        """Do what the launchers agree on; return how it ended.

        Raises PeerLostError when the pod of rank 0 is gone.
        """
        self.link.say(Ready(self.generation))
        async for order in self.link.orders():
            match order:
                case Start():
                    self._start(order)
                case Restart():
                    await self._restart(order)
                case Explain():
                    self._keep(self._explain())
                case Patience():
                    self._take_heart(order)
                case Hold():
                    self._hold()
                case Finish():
                    for rank in self.ranks:
                        rank.orders.finish(order.step)
                case End():
                    return order
        raise AssertionError("orders end with an error")

    async def stop(self, grace: float) -> None:
        """End what is left of the ranks."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        await asyncio.gather(*(rank.child.stop(grace) for rank in self.ranks if rank.code is None))

    def _start(self, order: Start) -> None:
        """Fork the ranks of a generation."""
        listener = self.take_listener()
        now = asyncio.get_running_loop().time()
        self.ranks = []
        for local, number in enumerate(self.pod.ranks):
            orders = Orders()
            task = RankTask(
                rank=number,
                local_rank=local,
                pod=self.pod,
                run=self.run,
                data=self.data,
                orders=orders,
                master=(self.link.host, order.port),
                listener=listener if number == 0 else None,
                stack_file=self._stack_file(number),
            )
            sockets = [listener.fileno()] if listener and number == 0 else []
            hear = functools.partial(self._hear, local)
            child = Child(f"rank-{number}", functools.partial(run_rank, task), hear, sockets)
            self.ranks.append(_Rank(number, child, orders, now))
        if listener is not None:
            listener.close()
        for rank in self.ranks:
            self._keep(self._until_exit(rank))
        self._keep(self._watch())
        self._keep(self._measure())

    async def _restart(self, order: Restart) -> None:
        """End the ranks at once: they only wait for one that is gone, or hangs itself."""
        agreed = datetime.now(UTC)
        for rank in self.ranks:
            rank.child.signal(signal.SIGKILL)
        await self.stop(0.0)
        self.generation = order.generation
        self.progress.restart(order.cause, agreed)
        self.link.say(Ready(self.generation))

    async def _until_exit(self, rank: _Rank) -> None:
        code = await rank.child.wait()
        rank.code = code
        if code:
            failure = rank_failure(rank.number, code, rank.failure)
            print(f"{failure.reason}: {failure.message:.2000}", file=sys.stderr)
            self.link.say(Failed(self.generation, failure))
        elif all(one.code == 0 for one in self.ranks):
            self.link.say(Done(self.generation))

    def _hear(self, local: int, report: Any) -> None:
        rank = self.ranks[local]
        if isinstance(report, FailureInfo):
            rank.failure = report
        elif isinstance(report, Statement):
            rank.statement = report
        else:
            rank.heard = asyncio.get_running_loop().time()
            rank.stepped = rank.stepped or isinstance(report, StepReport)
            self.progress.hear(rank.number, report)

    async def _watch(self) -> None:
        """Notice a rank that shows no progress. The first step also plans, compiles, connects."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = asyncio.get_running_loop().time()
            for rank in self.ranks:
                allowed = self.run.hang_timeout
                if not rank.stepped:
                    allowed = max(allowed, self.run.startup_timeout)
                if rank.code is None and now - rank.heard > allowed:
                    silent = now - rank.heard
                    self.link.say(Silent(self.generation, rank.number, silent, allowed))
                    break

    def _take_heart(self, order: Patience) -> None:
        """Count another rank's progress as that of those here, which wait for it."""
        moved = asyncio.get_running_loop().time() - order.seconds
        for rank in self.ranks:
            rank.heard = max(rank.heard, moved)

    async def _explain(self) -> None:
        """Ask every rank what it is doing, in words or, failing that, from its stack."""
        asked = [rank for rank in self.ranks if rank.code is None]
        generation = self.generation
        for rank in asked:
            rank.statement = None
            rank.child.signal(signal.SIGUSR2)
        await self._until_all_answered(asked)
        mute = [rank for rank in asked if rank.statement is None]
        for rank in mute:
            if not rank.child.stopped:
                rank.child.signal(signal.SIGUSR1)
        if mute:
            await asyncio.sleep(ANSWER_SECONDS / 4)
        statements = tuple(rank.statement or self._of_mute(rank) for rank in asked)
        now = asyncio.get_running_loop().time()
        moved = min((now - rank.heard for rank in asked), default=None)
        self.link.say(Stated(generation, statements, moved))

    async def _until_all_answered(self, asked: list[_Rank]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_SECONDS
        while loop.time() < deadline and any(rank.statement is None for rank in asked):
            await asyncio.sleep(0.02)

    def _of_mute(self, rank: _Rank) -> Statement:
        return Statement(
            rank=rank.number,
            state="stopped" if rank.child.stopped else "mute",
            step=rank.orders.started,
            waits=False,
            operations=(),
            stack=written_stack(self._stack_file(rank.number)),
        )

    def _hold(self) -> None:
        for rank in self.ranks:
            rank.orders.hold()
        started = max((rank.orders.started for rank in self.ranks), default=0)
        self.link.say(Held(self.generation, started))

    async def _measure(self) -> None:
        pids = [rank.child.pid for rank in self.ranks]
        while True:
            try:
                self.progress.see_devices(self.probe.source, self.probe.read(pids))
            except Exception as error:  # no figure this time; the next read may work
                print(f"cannot read {self.probe.source} utilisation: {error!r}", file=sys.stderr)
            await asyncio.sleep(PROBE_SECONDS)

    def _stack_file(self, rank: int) -> Path:
        return self.pod.work_dir / f"stack-{rank}.txt"

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
