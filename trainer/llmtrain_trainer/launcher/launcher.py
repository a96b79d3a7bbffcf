"""The pod's main process: `python -m llmtrain_trainer.launch`.

Prepares the data once, forks one rank per GPU, watches them, answers HTTP, and leaves behind the
first cause of a failure. Everything runs on one event loop in one thread, because ranks are forked
from here: they share the pages of the imported torch and start in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmtrain_core.api.defaults import TERMINATION_GRACE_SECONDS
from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST, MASTER_PORT, PORT
from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.checkpoint import paths
from llmtrain_trainer.checkpoint.init_from import base_tokenizer
from llmtrain_trainer.config import RunConfig, load_job
from llmtrain_trainer.data.prepare import PreparedData, prepare
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.launcher.http_server import serve
from llmtrain_trainer.launcher.restart.coordinator import EXIT_TERMINATED, Agreement, terminated
from llmtrain_trainer.launcher.restart.failure_cause import rank_failure
from llmtrain_trainer.launcher.restart.messages import Asked, End, Joined
from llmtrain_trainer.launcher.restart.transport import Host, Link
from llmtrain_trainer.launcher.status_tracker import Progress
from llmtrain_trainer.launcher.termination import result_message, write_message
from llmtrain_trainer.metrics.gpu_use import find_probe
from llmtrain_trainer.runtime.blocking import in_a_thread
from llmtrain_trainer.runtime.child_process import Child
from llmtrain_trainer.runtime.failures import describe
from llmtrain_trainer.runtime.pod_env import PodEnvironment, interface_of, termination_log
from llmtrain_trainer.runtime.sockets import cannot_listen, listen
from llmtrain_trainer.worker.stack_dump import RECORDER_ENTRIES

if TYPE_CHECKING:
    from llmtrain_trainer.launcher.worker_group import Crew  # imports torch, which takes seconds

STOP_SECONDS = 3.0
"""Between SIGTERM and SIGKILL of a rank."""

ASKED_SECONDS = 1.0
"""How far apart the pods of a gang are asked to stop, when all of them are."""

SAVE_SECONDS = TERMINATION_GRACE_SECONDS - 6.0
"""Seconds between SIGTERM and the end of a pod that saves a checkpoint first."""


class Launcher:
    """One pod's run."""

    def __init__(self, pod: PodEnvironment) -> None:
        self.pod = pod
        self.progress = Progress(pod.ranks, pod.attempt)
        self.preparation: Child | None = None
        self.host: Host | None = None
        self.link: Link | None = None
        self.crew: Crew | None = None
        self.listener: socket.socket | None = None
        self.asked = asyncio.Event()
        """The pod was asked to stop."""

    async def run(self) -> int:
        """Run to the end; return the pod's exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.asked.set)
        try:
            server = await serve(self.pod.pod_ip, self.pod.port, self.progress.pages())
        except OSError as error:
            return self._fail(describe(cannot_listen(error, self.pod.pod_ip, self.pod.port, PORT)))
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(self.asked.wait())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._ask_to_stop(work)
            if work.done():
                return await work
            work.cancel()
            return self._ended(terminated("and ended in the middle of a step"))
        finally:
            stop.cancel()
            await self._clean_up()
            server.close()

    async def _ask_to_stop(self, work: asyncio.Task[int]) -> None:
        """Let all launchers agree on a last step; ranks save after it."""
        if self.crew is not None and self.link is not None:
            self.link.say(Asked())
            await asyncio.wait((work,), timeout=SAVE_SECONDS)

    async def _clean_up(self) -> None:
        if self.preparation is not None:
            await self.preparation.stop(STOP_SECONDS)
        if self.crew is not None:
            await self.crew.stop(STOP_SECONDS)
        if self.link is not None:
            await self.link.close()
        if self.host is not None:
            await self.host.close()

    async def _work(self) -> int:
        try:
            run = load_job(self.pod.job_file)
            self.progress.know_job(run)
            self._set_environment()
            await self._host(run)
            data, _, link = await asyncio.gather(
                self._prepare(run), import_torch(), self._meet(run)
            )
            self.link = link
            end = await self._train(run, data, link)
        except Exception as error:  # the border of the pod: everything becomes a message
            return self._fail(describe(error))
        if end.cause is not None:
            if end.cause.exit_code == EXIT_TERMINATED:
                await self._wait_to_be_asked()
            return self._ended(end.cause)
        self.progress.status = self.progress.status.beat(phase="finished")
        if 0 in self.pod.ranks:
            write_message(self.pod.termination_log, result_message(self.progress.status))
        return 0

    async def _wait_to_be_asked(self) -> None:
        """Tell a gang that is stopped, pod after pod, from the loss of one of its pods."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.asked.wait(), ASKED_SECONDS)

    def _set_environment(self) -> None:
        """Set what torch and its libraries read; before torch is imported."""
        interface = interface_of(self.pod.pod_ip)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
        # ranks are the parallelism: more threads per rank only spin against each other
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["WORLD_SIZE"] = str(self.pod.world_size)
        os.environ["LOCAL_WORLD_SIZE"] = str(len(self.pod.ranks))
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(RECORDER_ENTRIES))

    async def _host(self, run: RunConfig) -> None:
        """Hold the agreement, in the pod of rank 0."""
        if 0 not in self.pod.ranks:
            return
        agreement = Agreement(
            self.pod.world_size,
            run.restarts_in_place,
            run.startup_timeout,
            saves=run.checkpoint is not None,
        )
        self.progress.on_checkpoint = agreement.saved
        address, port = self.pod.pod_ip, self.pod.master_port
        try:
            self.host = await Host.serve(agreement, self._listen, address, port)
        except OSError as error:
            raise cannot_listen(error, address, port, MASTER_PORT) from error

    def _listen(self) -> int:
        self.listener = listen(self.pod.pod_ip)
        return int(self.listener.getsockname()[1])

    def _take_listener(self) -> socket.socket | None:
        listener, self.listener = self.listener, None
        return listener

    async def _meet(self, run: RunConfig) -> Link:
        # the pod of rank 0 knows its own address better than the cluster's names do
        host = self.pod.pod_ip if 0 in self.pod.ranks else self.pod.master_addr
        link = await Link.connect((host, self.pod.master_port), run.startup_timeout)
        link.say(Joined(self.pod.ranks))
        return link

    async def _prepare(self, run: RunConfig) -> PreparedData:
        """Run the data step in a child: it needs a core for seconds and much memory for a while."""
        values: list[PreparedData | FailureInfo] = []
        child = Child("prepare", functools.partial(_prepare, run, self.pod), values.append)
        self.preparation = child
        code = await child.wait()
        if values and isinstance(values[0], PreparedData):
            return values[0]
        if values and isinstance(values[0], FailureInfo):
            raise ReportedError(values[0])
        raise ReportedError(rank_failure(min(self.pod.ranks), code or 1, None))

    async def _train(self, run: RunConfig, data: PreparedData, link: Link) -> End:
        """Run the ranks until the launchers agree that it is over."""
        from llmtrain_trainer.launcher.worker_group import Crew
        from llmtrain_trainer.metrics.peak_flops import peak_flops

        probe = find_probe()
        devices = probe.names()
        self.progress.metrics.name_devices(devices)
        self.progress.know_peak(peak_flops(devices[0].model if devices else None))
        self.crew = Crew(self.pod, run, data, link, self.progress, probe, self._take_listener)
        return await self.crew.work()

    def _ended(self, cause: FailureInfo) -> int:
        """Leave the message and return the code of a gang that did not end well."""
        if cause.exit_code == EXIT_TERMINATED and self.asked.is_set():
            return self._fail(replace(cause, rank=None))
        if cause.rank is None and cause.exit_code != EXIT_TERMINATED:
            return self._fail(cause)
        if cause.rank in self.pod.ranks:
            return self._fail(cause)
        text = f"{cause.reason} elsewhere in the gang: {cause.message}"
        lost = FailureInfo("PeerLost", text, exit_code=EXIT_PEER_LOST, rank=cause.rank)
        return self._fail(lost)

    def _fail(self, failure: FailureInfo) -> int:
        self.progress.status = self.progress.status.beat(phase="failed")
        print(f"{failure.reason}: {failure.message[:2000]}", file=sys.stderr, flush=True)
        write_message(self.pod.termination_log, failure.to_termination_message())
        return failure.exit_code or EXIT_EXCEPTION


class ReportedError(TrainerError):
    """A failure that a child already described."""

    def __init__(self, failure: FailureInfo) -> None:
        super().__init__(
            failure.reason, failure.message, field=failure.field, remedy=failure.remedy
        )
        self.exit_code = failure.exit_code or EXIT_EXCEPTION  # type: ignore[misc]


def _prepare(run: RunConfig, pod: PodEnvironment, send: Callable[[Any], None]) -> int:
    """Check what only this pod can see, and prepare the data; runs in the child."""
    try:
        _require_folders(run, pod)
        send(prepare(run.data, run.sequence, pod.work_dir, base_tokenizer))
    except Exception as error:  # the border of the process
        failure = describe(error)
        send(failure)
        return failure.exit_code or EXIT_EXCEPTION
    return 0


def _require_folders(run: RunConfig, pod: PodEnvironment) -> None:
    """Raise InputError unless what is saved and exported can be written: not days later."""
    if run.checkpoint is None:
        return
    paths.require_usable(paths.folder_of(run.checkpoint.uri))
    if run.checkpoint.export is not None and 0 in pod.ranks:  # rank 0 writes it
        to = paths.folder_of(run.checkpoint.export, paths.EXPORT_FIELD)
        paths.require_usable(to, paths.EXPORT_FIELD, "ExportNotWritable")


async def import_torch() -> None:
    """Import what ranks need, while HTTP is answered; ranks are forked after."""

    def load() -> None:
        importlib.import_module("llmtrain_trainer.worker.main")
        importlib.import_module("torch").set_num_threads(1)

    await in_a_thread(load, "import-torch")


def main() -> int:
    """Run the launcher; return the exit code."""
    try:
        pod = PodEnvironment.read(os.environ)
    except TrainerError as error:
        failure = describe(error)
        write_message(termination_log(os.environ), failure.to_termination_message())
        print(failure.message, file=sys.stderr, flush=True)
        return failure.exit_code or EXIT_EXCEPTION
    return asyncio.run(Launcher(pod).run())
