"""The pod's main process: `python -m llmtrain_trainer.launch`.

Prepares the data once, forks one rank per GPU, watches them, answers HTTP, and leaves behind the
first cause of a failure. Everything runs on one event loop in one thread, because ranks are forked
from here: they share the pages of the imported torch and start in milliseconds.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from llmtrain_core.api.env import PORT
from llmtrain_trainer.cause import Cause, RankExit, first_cause
from llmtrain_trainer.checkpoint import folders
from llmtrain_trainer.config import RunConfig, load_job
from llmtrain_trainer.data.prepare import PreparedData, prepare
from llmtrain_trainer.endpoint import serve
from llmtrain_trainer.environment import PodEnvironment, interface_of, termination_log
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.failures import describe
from llmtrain_trainer.metrics.utilization import UtilizationProbe, find_probe
from llmtrain_trainer.ports import cannot_listen
from llmtrain_trainer.processes import Child
from llmtrain_trainer.progress import Progress
from llmtrain_trainer.reports import FailureReport, Report
from llmtrain_trainer.status import failure_message, result_message, write_message

CAUSE_SECONDS = 2.0
"""After a lost peer, how long to wait for the local failure that may have caused it."""

STOP_SECONDS = 3.0
"""Between SIGTERM and SIGKILL of a rank."""

PROBE_SECONDS = 2.0


class Launcher:
    """One pod's run."""

    def __init__(self, pod: PodEnvironment) -> None:
        self.pod = pod
        self.progress = Progress(pod.ranks, pod.attempt)
        self.children: list[Child] = []
        self.listeners: list[int] = []

    async def run(self) -> int:
        """Run to the end; return the pod's exit code."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            server = await serve(self.pod.pod_ip, self.pod.port, self.progress.pages())
        except OSError as error:
            failure = describe(cannot_listen(error, self.pod.pod_ip, self.pod.port, PORT))
            return self._fail(failure, None, failure.exit_code)
        self.listeners = [listener.fileno() for listener in server.sockets]
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return await work
            work.cancel()
            return self._fail(
                FailureReport("Terminated", "the pod was asked to stop", None, None, 143), None, 143
            )
        finally:
            stop.cancel()
            await asyncio.gather(*(child.stop(STOP_SECONDS) for child in self.children))
            server.close()

    async def _work(self) -> int:
        try:
            run = load_job(self.pod.job_file)
            self.progress.know_job(run)
            self._set_environment()
            data, _ = await asyncio.gather(self._prepare(run), _import_torch())
            probe = find_probe()
            from llmtrain_trainer.metrics.peak import peak_flops

            devices = probe.names()
            self.progress.metrics.name_devices(devices)
            self.progress.know_peak(peak_flops(devices[0].model if devices else None))
            cause = await self._train(run, data, probe)
        except Exception as error:  # the border of the pod: everything becomes a message
            failure = describe(error)
            return self._fail(failure, None, failure.exit_code)
        if cause is not None:
            return self._fail(cause.report, cause.rank, cause.exit_code)
        self.progress.status = self.progress.status.beat(phase="finished")
        if 0 in self.pod.ranks:
            write_message(self.pod.termination_log, result_message(self.progress.status))
        return 0

    def _set_environment(self) -> None:
        """Set what torch and its libraries read; before torch is imported."""
        interface = interface_of(self.pod.pod_ip)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
        # ranks are the parallelism: more threads per rank only spin against each other
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["WORLD_SIZE"] = str(self.pod.world_size)
        os.environ["LOCAL_WORLD_SIZE"] = str(len(self.pod.ranks))

    async def _prepare(self, run: RunConfig) -> PreparedData:
        """Run the data step in a child: it needs a core for seconds and much memory for a while."""
        values: list[PreparedData | FailureReport] = []
        entry = functools.partial(_prepare, run, self.pod)
        child = Child("prepare", entry, values.append, self.listeners)
        self.children.append(child)
        code = await child.wait()
        if values and isinstance(values[0], PreparedData):
            return values[0]
        if values and isinstance(values[0], FailureReport):
            raise ReportedError(values[0])
        cause = first_cause([RankExit(min(self.pod.ranks), code or 1, None)])
        raise ReportedError(cause.report if cause else describe(RuntimeError("no data")))

    async def _train(
        self, run: RunConfig, data: PreparedData, probe: UtilizationProbe
    ) -> Cause | None:
        """Fork the ranks and watch them; return the cause of a failure, None when all are done."""
        from llmtrain_trainer.rank import RankTask, run_rank

        exits: asyncio.Queue[RankExit] = asyncio.Queue()
        tasks: list[asyncio.Task[None]] = []
        pids: list[int] = []
        for local_rank, rank in enumerate(self.pod.ranks):
            task = RankTask(rank, local_rank, self.pod, run, data)
            watch = _Watch(rank, self.progress.hear)
            entry = functools.partial(run_rank, task)
            child = Child(f"rank-{rank}", entry, watch.hear, self.listeners)
            self.children.append(child)
            pids.append(child.pid)
            tasks.append(asyncio.create_task(watch.until_exit(child, exits)))
        tasks.append(asyncio.create_task(self._probe(probe, pids)))
        try:
            return await _collect(exits, len(pids))
        finally:
            for task_ in tasks:
                task_.cancel()

    async def _probe(self, probe: UtilizationProbe, pids: list[int]) -> None:
        while True:
            try:
                self.progress.see_devices(probe.source, probe.read(pids))
            except Exception as error:  # no figure this time; the next read may work
                print(f"cannot read {probe.source} utilisation: {error!r}", file=sys.stderr)
            await asyncio.sleep(PROBE_SECONDS)

    def _fail(self, failure: FailureReport, rank: int | None, exit_code: int) -> int:
        self.progress.status = self.progress.status.beat(phase="failed")
        print(f"{failure.reason}: {failure.message[:2000]}", file=sys.stderr, flush=True)
        write_message(self.pod.termination_log, failure_message(failure, rank, exit_code))
        return exit_code


class ReportedError(TrainerError):
    """A failure that a child already described."""

    def __init__(self, report: FailureReport) -> None:
        super().__init__(report.reason, report.message, field=report.field, remedy=report.remedy)
        self.exit_code = report.exit_code  # type: ignore[misc]


class _Watch:
    """Listens to one rank; keeps the failure it reported until its process has ended."""

    def __init__(self, rank: int, hear: Callable[[int, Report], None]) -> None:
        self._rank, self._hear = rank, hear
        self._failure: FailureReport | None = None

    def hear(self, report: Any) -> None:
        """Take a report from the pipe."""
        if isinstance(report, FailureReport):
            self._failure = report
        else:
            self._hear(self._rank, report)

    async def until_exit(self, child: Child, exits: asyncio.Queue[RankExit]) -> None:
        """Wait for the process and say how it ended."""
        code = await child.wait()
        await exits.put(RankExit(self._rank, code, self._failure))


async def _collect(exits: asyncio.Queue[RankExit], count: int) -> Cause | None:
    """Wait until all ranks ended, one failed, or nothing explains a lost peer in time."""
    seen: list[RankExit] = []
    patience: float | None = None
    while len(seen) < count:
        try:
            seen.append(await asyncio.wait_for(exits.get(), patience))
        except TimeoutError:
            break
        if seen[-1].only_lost_a_peer:
            patience = CAUSE_SECONDS
        elif seen[-1].failed:
            break
    return first_cause(seen)


def _prepare(run: RunConfig, pod: PodEnvironment, send: Callable[[Any], None]) -> int:
    """Check what only this pod can see, and prepare the data; runs in the child."""
    try:
        if run.checkpoint is not None:
            folders.require_usable(folders.folder_of(run.checkpoint.uri))
        send(prepare(run.data, run.sequence, pod.work_dir))
    except Exception as error:  # the border of the process
        failure = describe(error)
        send(failure)
        return failure.exit_code
    return 0


async def _import_torch() -> None:
    """Import what ranks need on a thread, so that HTTP is answered meanwhile; it has ended after.

    Ranks are forked later, when this process has one thread again.
    """
    failed: list[BaseException] = []

    def load() -> None:
        try:
            importlib.import_module("llmtrain_trainer.rank")
            importlib.import_module("torch").set_num_threads(1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=load, name="import-torch")
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.02)
    thread.join()
    if failed:
        raise failed[0]


def main() -> int:
    """Run the launcher; return the exit code."""
    try:
        pod = PodEnvironment.read(os.environ)
    except TrainerError as error:
        failure = describe(error)
        write_message(
            termination_log(os.environ), failure_message(failure, None, failure.exit_code)
        )
        print(failure.message, file=sys.stderr, flush=True)
        return failure.exit_code
    return asyncio.run(Launcher(pod).run())


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    # at once: a half-finished import of torch on its thread would be waited for
    os._exit(exit_code)
