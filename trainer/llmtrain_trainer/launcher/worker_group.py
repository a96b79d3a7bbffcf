"""The ranks of this pod, generation after generation, as the coordinator commands."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData
from llmtrain_trainer.launcher.gpu_errors import XidLog, explained
from llmtrain_trainer.launcher.restart.first_cause import rank_failure
from llmtrain_trainer.launcher.restart.messages import (
    Done,
    DumpStacks,
    End,
    Failed,
    HangCleared,
    HangSuspected,
    NextTrial,
    PauseSteps,
    Ready,
    Restart,
    StacksReported,
    StartRanks,
    StepsPaused,
    StopAfterStep,
)
from llmtrain_trainer.launcher.restart.transport import CoordinatorClient
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.metrics.devices import DeviceMonitor
from llmtrain_trainer.runtime.child_process import ChildProcess
from llmtrain_trainer.runtime.locked_memory import use_tcp
from llmtrain_trainer.runtime.log_format import write_line
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import RankDump, StepReport
from llmtrain_trainer.runtime.step_gate import StepGate
from llmtrain_trainer.worker.main import RankTask, run_rank
from llmtrain_trainer.worker.stack_dump import read_written_stack

DEVICE_READ_SECONDS = 2.0
HANG_CHECK_SECONDS = 0.25
DUMP_SECONDS = 1.0
"""How long to wait for the dump of a rank. faulthandler then has a quarter of it for the stack."""

TakeListener = Callable[[], socket.socket | None]
"""Returns the socket on which rank 0 serves the store of its generation; None in other pods."""


@dataclass(slots=True)
class _RankProcess:
    """The process of one rank in one generation."""

    rank: int
    child: ChildProcess
    gate: StepGate
    last_progress: float
    """On the clock of the event loop."""
    has_stepped: bool = False
    failure: FailureInfo | None = None
    dump: RankDump | None = None
    exit_code: int | None = None
    """None while the process runs."""


@dataclass(slots=True)
class WorkerGroup:
    """The ranks of this pod."""

    pod: PodEnvironment
    run: RunConfig
    data: PreparedData
    client: CoordinatorClient
    tracker: StatusTracker
    monitor: DeviceMonitor
    take_listener: TakeListener
    gpu_errors: XidLog
    generation: int = 0
    processes: list[_RankProcess] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def follow_commands(self) -> End:
        """Execute the commands of the coordinator until the gang has ended.

        Raises PeerLostError when the pod of rank 0 is gone.
        """
        self.client.send(Ready(self.generation))
        async for command in self.client.commands():
            match command:
                case StartRanks():
                    self._start(command)
                case Restart():
                    decided = datetime.now(UTC)
                    await self._kill(command.generation)
                    self.tracker.on_restart(command.cause, decided)
                    self.client.send(Ready(self.generation))
                case NextTrial():
                    await self._kill(command.generation)
                    self.tracker.on_next_trial()
                    self.client.send(Ready(self.generation))
                case DumpStacks():
                    self._run_in_background(self._report_stacks())
                case HangCleared():
                    self._reset_progress(command)
                case PauseSteps():
                    self._pause()
                case StopAfterStep():
                    for process in self.processes:
                        process.gate.stop_after(command.step)
                case End():
                    return command
        raise AssertionError("the stream of commands ends with an error")

    async def stop(self, grace: float) -> None:
        """End the ranks that still run."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        running = (process for process in self.processes if process.exit_code is None)
        await asyncio.gather(*(process.child.stop(grace) for process in running))

    def _start(self, command: StartRanks) -> None:
        """Fork the ranks of a generation."""
        if command.no_rdma:
            use_tcp()
            self.tracker.on_network_fallback(command.no_rdma)
        listener = self.take_listener()
        now = asyncio.get_running_loop().time()
        self.processes = []
        for local_rank, rank in enumerate(self.pod.ranks):
            gate = StepGate()
            task = RankTask(
                rank=rank,
                local_rank=local_rank,
                pod=self.pod,
                run=self.run,
                data=self.data,
                gate=gate,
                master=(self.client.address, command.port),
                listener=listener if rank == 0 else None,
                stack_file=self._stack_file(rank),
                variables=command.variables,
            )
            sockets = [listener.fileno()] if listener and rank == 0 else []
            on_report = functools.partial(self._on_report, local_rank)
            entry = functools.partial(run_rank, task)
            child = ChildProcess(f"rank-{rank}", entry, on_report, sockets)
            self.processes.append(_RankProcess(rank, child, gate, now))
        if listener is not None:
            listener.close()
        for process in self.processes:
            self._run_in_background(self._wait_for_exit(process))
        self._run_in_background(self._check_for_hangs())
        self._run_in_background(self._read_devices())

    async def _kill(self, generation: int) -> None:
        """Kill the ranks: they wait for a rank that is gone, or hang themselves."""
        for process in self.processes:
            process.child.signal(signal.SIGKILL)
        await self.stop(0.0)
        self.generation = generation

    async def _wait_for_exit(self, process: _RankProcess) -> None:
        code = await process.child.wait()
        process.exit_code = code
        if code:
            failure = rank_failure(process.rank, code, process.failure)
            failure = explained(failure, self.gpu_errors.current())
            write_line(f"{failure.reason}: {failure.message:.2000}")
            self.client.send(Failed(self.generation, failure))
        elif all(one.exit_code == 0 for one in self.processes):
            self.client.send(Done(self.generation))

    def _on_report(self, local_rank: int, report: Any) -> None:
        process = self.processes[local_rank]
        if isinstance(report, FailureInfo):
            process.failure = report
        elif isinstance(report, RankDump):
            process.dump = report
        else:
            process.last_progress = asyncio.get_running_loop().time()
            process.has_stepped = process.has_stepped or isinstance(report, StepReport)
            self.tracker.on_report(process.rank, report)

    async def _check_for_hangs(self) -> None:
        """Report a rank without progress. The first step also compiles and connects the groups."""
        while True:
            await asyncio.sleep(HANG_CHECK_SECONDS)
            now = asyncio.get_running_loop().time()
            for process in self.processes:
                allowed = self.run.hang_timeout
                if not process.has_stepped:
                    allowed = max(allowed, self.run.startup_timeout)
                seconds = now - process.last_progress
                if process.exit_code is None and seconds > allowed:
                    suspicion = HangSuspected(self.generation, process.rank, seconds, allowed)
                    self.client.send(suspicion)
                    break

    def _reset_progress(self, command: HangCleared) -> None:
        """Count the progress of another rank as that of the ranks here, which wait for it."""
        progress = asyncio.get_running_loop().time() - command.seconds
        for process in self.processes:
            process.last_progress = max(process.last_progress, progress)

    async def _report_stacks(self) -> None:
        """Request a dump from every rank; from one that does not respond, only its stack."""
        running = [process for process in self.processes if process.exit_code is None]
        generation = self.generation
        for process in running:
            process.dump = None
            process.child.signal(signal.SIGUSR2)
        await self._wait_for_dumps(running)
        unresponsive = [process for process in running if process.dump is None]
        for process in unresponsive:
            if not process.child.stopped:
                process.child.signal(signal.SIGUSR1)
        if unresponsive:
            await asyncio.sleep(DUMP_SECONDS / 4)
        dumps = tuple(process.dump or self._dump_of_unresponsive(process) for process in running)
        now = asyncio.get_running_loop().time()
        seconds = min((now - process.last_progress for process in running), default=None)
        self.client.send(StacksReported(generation, dumps, seconds))

    async def _wait_for_dumps(self, processes: list[_RankProcess]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DUMP_SECONDS
        while loop.time() < deadline and any(process.dump is None for process in processes):
            await asyncio.sleep(0.02)

    def _dump_of_unresponsive(self, process: _RankProcess) -> RankDump:
        return RankDump(
            rank=process.rank,
            state="stopped" if process.child.stopped else "unresponsive",
            step=process.gate.started,
            waiting=False,
            operations=(),
            stack=read_written_stack(self._stack_file(process.rank)),
        )

    def _pause(self) -> None:
        for process in self.processes:
            process.gate.pause()
        started = max((process.gate.started for process in self.processes), default=0)
        self.client.send(StepsPaused(self.generation, started))

    async def _read_devices(self) -> None:
        pids = [process.child.pid for process in self.processes]
        source = self.monitor.source
        while True:
            try:
                self.tracker.on_devices(source, self.monitor.read(pids))
            except Exception as error:  # no reading this time; the next one may work
                write_line(f"cannot read {source} utilisation: {error!r}")
            self.gpu_errors.poll()
            await asyncio.sleep(DEVICE_READ_SECONDS)

    def _stack_file(self, rank: int) -> Path:
        return self.pod.work_dir / f"stack-{rank}.txt"

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
