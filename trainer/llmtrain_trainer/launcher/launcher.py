"""The main process of a pod: `python -m llmtrain_trainer.launch`.

It prepares the data once, forks one rank per GPU, monitors the ranks, serves HTTP, and writes the
first cause of a failure to the termination message. Everything runs on one event loop in one thread
because ranks are forked from here: they share the memory pages of the imported torch and start in
milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import os
import signal
import socket
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmtrain_core.api.defaults import TERMINATION_GRACE_SECONDS
from llmtrain_core.api.env import EXIT_EXCEPTION, EXIT_PEER_LOST, MASTER_PORT, PORT
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.checkpoint.init_from import base_tokenizer
from llmtrain_trainer.checkpoint.paths import EXPORT_FIELD, folder_from_uri, require_writable
from llmtrain_trainer.config import RunConfig
from llmtrain_trainer.data.prepare import PreparedData, prepare
from llmtrain_trainer.data.tokenizer import endless_tokenizer
from llmtrain_trainer.errors import InputError, TrainerError
from llmtrain_trainer.job_spec import load_job
from llmtrain_trainer.launcher.gpu_errors import XidLog, explained
from llmtrain_trainer.launcher.http_server import serve
from llmtrain_trainer.launcher.restart.coordinator import (
    EXIT_TERMINATED,
    RestartCoordinator,
    terminated,
)
from llmtrain_trainer.launcher.restart.first_cause import rank_failure
from llmtrain_trainer.launcher.restart.messages import End, Registered, StopRequested
from llmtrain_trainer.launcher.restart.network_trials import NetworkTrials, candidates_of
from llmtrain_trainer.launcher.restart.transport import CoordinatorClient, CoordinatorServer
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from llmtrain_trainer.launcher.termination import result_message, write_message
from llmtrain_trainer.metrics.gpu_use import open_monitor
from llmtrain_trainer.metrics.kernel_log import open_kernel_log
from llmtrain_trainer.runtime.address_filter import admit_only
from llmtrain_trainer.runtime.child_process import ChildProcess
from llmtrain_trainer.runtime.exception_report import failure_of
from llmtrain_trainer.runtime.gang_key import read_gang_key
from llmtrain_trainer.runtime.locked_memory import (
    MEMLOCK_TOO_LOW,
    REMEDY,
    lack_of_locked_memory,
    locked_memory_limit,
)
from llmtrain_trainer.runtime.log_format import format_warnings, write_line
from llmtrain_trainer.runtime.pod_env import PodEnvironment, interface_of, termination_log
from llmtrain_trainer.runtime.run_in_thread import run_in_thread
from llmtrain_trainer.runtime.sockets import listen, raise_file_limit
from llmtrain_trainer.training.trackers import require_packages
from llmtrain_trainer.weights.export_folder import require_exportable
from llmtrain_trainer.worker.stack_dump import FLIGHT_RECORDER_ENTRIES

if TYPE_CHECKING:
    from llmtrain_trainer.launcher.worker_group import WorkerGroup  # imports torch

STOP_SECONDS = 3.0
"""Time between SIGTERM and SIGKILL of a rank."""

SIGTERM_SPREAD_SECONDS = 1.0
"""Longest time between the SIGTERMs of two pods, when all pods of a gang are stopped."""

END_SECONDS = 6.0
"""Seconds of the grace period that are left for the end of a pod after it has saved."""


class Launcher:
    """Runs one pod."""

    def __init__(self, pod: PodEnvironment) -> None:
        self.pod = pod
        self.tracker = StatusTracker(pod.ranks, pod.attempt, pod.metrics)
        self.data_process: ChildProcess | None = None
        self.coordinator_server: CoordinatorServer | None = None
        self.client: CoordinatorClient | None = None
        self.workers: WorkerGroup | None = None
        self.gpu_errors = XidLog([])
        self.listener: socket.socket | None = None
        """For the rendezvous of the next generation; in the pod of rank 0 only."""
        self.grace_seconds = TERMINATION_GRACE_SECONDS
        self.stop_requested = asyncio.Event()
        """Set by SIGTERM and SIGINT."""

    async def run(self) -> int:
        """Run to the end; return the pod's exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop_requested.set)
        try:
            listener = listen(self.pod.pod_ip, self.pod.port, PORT)
        except TrainerError as error:
            return self._fail(failure_of(error))
        server = serve(listener, self.tracker.routes())
        job = asyncio.create_task(self._run_job())
        stop = asyncio.create_task(self.stop_requested.wait())
        try:
            await asyncio.wait((job, stop), return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                await self._save_and_stop(job)
            if job.done():
                return await job
            job.cancel()
            return self._end(terminated("and ended in the middle of a step"))
        finally:
            stop.cancel()
            await self._clean_up()
            server.close()

    async def _save_and_stop(self, job: asyncio.Task[int]) -> None:
        """Request a common last step from the coordinator; the ranks save after it."""
        if self.workers is not None and self.client is not None:
            self.client.send(StopRequested())
            await asyncio.wait((job,), timeout=self.grace_seconds - END_SECONDS)

    async def _clean_up(self) -> None:
        if self.data_process is not None:
            await self.data_process.stop(STOP_SECONDS)
        if self.workers is not None:
            await self.workers.stop(STOP_SECONDS)
        if self.client is not None:
            await self.client.close()
        if self.coordinator_server is not None:
            await self.coordinator_server.close()

    async def _run_job(self) -> int:
        try:
            run = load_job(self.pod.job_file)
            key = read_gang_key(self.pod.job_file.parent, self.pod.attempt)
            self.tracker.set_job(run)
            self.grace_seconds = run.grace_seconds
            no_rdma = self._check_locked_memory()
            self._set_environment()
            self._start_coordinator(run, key)
            data, _, client = await asyncio.gather(
                self._prepare(run), import_torch(), self._register(run, key, no_rdma)
            )
            self.client = client
            self.tracker.set_chat_template(data.template)
            end = await self._train(run, data, client)
        except Exception as error:  # whatever it is, it belongs in the termination message
            return self._fail(failure_of(error))
        if end.cause is not None:
            if end.cause.exit_code == EXIT_TERMINATED:
                await self._wait_for_sigterm()
            return self._end(end.cause)
        self.tracker.enter("finished")
        if 0 in self.pod.ranks:
            write_message(self.pod.termination_log, result_message(self.tracker.status))
        return 0

    async def _wait_for_sigterm(self) -> None:
        """Wait for this pod's own SIGTERM, which may follow shortly after that of another pod."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop_requested.wait(), SIGTERM_SPREAD_SECONDS)

    def _set_environment(self) -> None:
        """Set the variables that torch and its libraries read. Call before the import of torch."""
        interface = interface_of(self.pod.pod_ip)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
        # one thread per rank: ranks share the cores, and more threads would only contend for them
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["WORLD_SIZE"] = str(self.pod.world_size)
        os.environ["LOCAL_WORLD_SIZE"] = str(len(self.pod.ranks))
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(FLIGHT_RECORDER_ENTRIES))

    def _start_coordinator(self, run: RunConfig, key: bytes | None) -> None:
        """Start the coordinator in the pod of rank 0; in other pods do nothing."""
        if 0 not in self.pod.ranks:
            return
        coordinator = RestartCoordinator(
            self.pod.world_size,
            run.max_restarts_in_place,
            run.startup_timeout,
            saves=run.checkpoint is not None,
            trials=self._network_trials(run),
        )
        self.tracker.on_checkpoint = coordinator.on_checkpoint
        listener = listen(self.pod.pod_ip, self.pod.master_port, MASTER_PORT)
        pods = self.pod.world_size // len(self.pod.ranks)
        if key is None and pods > 1:
            write_line("the job has no key of the gang: its launchers accept everyone who connects")
        self.coordinator_server = CoordinatorServer(
            coordinator, self._open_port, listener, key, pods
        )

    def _network_trials(self, run: RunConfig) -> NetworkTrials | None:
        """Return the trials of a job with `network.tuning`. Raises InputError if it has none."""
        if run.network_tuning is None:
            return None
        trials = NetworkTrials(
            candidates_of(run.network_tuning, run.layout.world_size, self.pod, os.environ),
            run.network_tuning.known,
            self.tracker.on_network_tuning,
        )
        self.tracker.on_step = trials.add_step
        return trials

    def _open_port(self, addresses: Collection[str]) -> int:
        def restrict(listener: socket.socket) -> None:
            try:
                admit_only(listener, addresses)
            except OSError as error:
                write_line(f"torch's store is open to all addresses: no filter, {error}")

        # The filter comes first: a socket that was accepted before it would have none.
        self.listener = listen(self.pod.pod_ip, prepare=restrict)
        return int(self.listener.getsockname()[1])

    def _take_listener(self) -> socket.socket | None:
        listener, self.listener = self.listener, None
        return listener

    def _check_locked_memory(self) -> str:
        """Return why this pod cannot use RDMA although it prefers to; empty if it can.

        Raises InputError (`MemlockTooLow`) if the job requires RDMA.
        """
        lacks = lack_of_locked_memory(locked_memory_limit()) if self.pod.rdma else ""
        if lacks and self.pod.rdma == "required":
            raise InputError(MEMLOCK_TOO_LOW, lacks, field="spec.network.profile", remedy=REMEDY)
        if lacks:
            write_line(f"the ranks use TCP instead of RDMA: {lacks}; {REMEDY}")
        return lacks

    async def _register(self, run: RunConfig, key: bytes | None, no_rdma: str) -> CoordinatorClient:
        """Connect to the coordinator and register this pod's ranks."""
        # the pod of rank 0 does not depend on the cluster's DNS for its own address
        host = self.pod.pod_ip if 0 in self.pod.ranks else self.pod.master_addr
        master = (host, self.pod.master_port)
        client = await CoordinatorClient.connect(master, run.startup_timeout, key)
        client.send(Registered(self.pod.ranks, no_rdma, self.pod.node_name))
        return client

    async def _prepare(self, run: RunConfig) -> PreparedData:
        """Run the data step in a child process: it takes seconds of CPU time and much memory."""
        values: list[PreparedData | FailureInfo] = []
        child = ChildProcess("prepare", functools.partial(_prepare, run, self.pod), values.append)
        self.data_process = child
        code = await child.wait()
        if values and isinstance(values[0], PreparedData):
            return values[0]
        if values and isinstance(values[0], FailureInfo):
            raise ReportedError(values[0])
        if code == -signal.SIGVTALRM:
            raise endless_tokenizer(run.data.tokenizer or f"the tokenizer of {run.data.init_from}")
        raise ReportedError(rank_failure(min(self.pod.ranks), code or 1, None))

    async def _train(self, run: RunConfig, data: PreparedData, client: CoordinatorClient) -> End:
        """Run the ranks until the coordinator ends the gang."""
        from llmtrain_trainer.launcher.worker_group import WorkerGroup
        from llmtrain_trainer.metrics.peak_flops import peak_flops

        monitor = open_monitor()
        devices = monitor.names()
        self.tracker.metrics.set_device_names(devices)
        self.tracker.set_peak_flops(peak_flops(devices[0].model if devices else None))
        self.gpu_errors = XidLog([monitor.xids, *open_kernel_log()])
        self.workers = WorkerGroup(
            self.pod,
            run,
            data,
            client,
            self.tracker,
            monitor,
            self._take_listener,
            self.gpu_errors,
        )
        return await self.workers.follow_commands()

    def _end(self, cause: FailureInfo) -> int:
        """Write the message of a gang that failed, as seen from this pod; return the exit code."""
        if cause.exit_code == EXIT_TERMINATED and self.stop_requested.is_set():
            return self._fail(replace(cause, rank=None))
        if cause.rank is None and cause.exit_code != EXIT_TERMINATED:
            return self._fail(cause)
        if cause.rank in self.pod.ranks:
            return self._fail(cause)
        text = f"{cause.reason} elsewhere in the gang: {cause.message}"
        lost = FailureInfo("PeerLost", text, exit_code=EXIT_PEER_LOST, rank=cause.rank)
        found = explained(lost, self.gpu_errors.current())
        return self._fail(lost if found is lost else replace(found, rank=None))

    def _fail(self, failure: FailureInfo) -> int:
        self.tracker.enter("failed")
        write_line(f"{failure.reason}: {failure.message[:2000]}")
        write_message(self.pod.termination_log, failure.to_termination_message())
        return failure.exit_code or EXIT_EXCEPTION


class ReportedError(TrainerError):
    """A failure that a child process has reported."""

    def __init__(self, failure: FailureInfo) -> None:
        super().__init__(
            failure.reason, failure.message, field=failure.field, remedy=failure.remedy
        )
        self.exit_code = failure.exit_code or EXIT_EXCEPTION  # type: ignore[misc]


def _prepare(run: RunConfig, pod: PodEnvironment, send: Callable[[Any], None]) -> int:
    """Check the folders that the job writes to, and prepare the data. Runs in the child."""
    try:
        _require_folders(run, pod)
        if 0 in pod.ranks:  # rank 0 writes to the trackers
            require_packages(run.trackers)
        log = write_line if 0 in pod.ranks else lambda _: None
        send(prepare(run.data, run.sequence, pod.work_dir, base_tokenizer, log))
    except Exception as error:  # whatever it is, the parent reports it
        failure = failure_of(error)
        send(failure)
        return failure.exit_code or EXIT_EXCEPTION
    return 0


def _require_folders(run: RunConfig, pod: PodEnvironment) -> None:
    """Raise InputError if checkpoints or the export cannot be written: now, not days later."""
    if run.checkpoint is None:
        return
    require_writable(folder_from_uri(run.checkpoint.uri))
    if run.checkpoint.export is not None and 0 in pod.ranks:  # rank 0 writes it
        to = folder_from_uri(run.checkpoint.export, EXPORT_FIELD)
        require_writable(to, EXPORT_FIELD, "ExportNotWritable")
        require_exportable(to)


async def import_torch() -> None:
    """Import what ranks need, while HTTP is served. Ranks are forked afterwards."""

    def load() -> None:
        # Without the collector the import takes three quarters of the CPU time. What it has made
        # stays frozen: a collection in a rank would copy 100 MB of pages that all ranks share.
        gc.disable()
        importlib.import_module("llmtrain_trainer.worker.main")
        importlib.import_module("torch").set_num_threads(1)
        gc.freeze()
        gc.enable()

    await run_in_thread(load, "import-torch")


def main() -> int:
    """Run the launcher; return the exit code."""
    format_warnings()
    raise_file_limit()
    try:
        pod = PodEnvironment.read(os.environ)
    except TrainerError as error:
        failure = failure_of(error)
        write_message(termination_log(os.environ), failure.to_termination_message())
        write_line(failure.message)
        return failure.exit_code or EXIT_EXCEPTION
    return asyncio.run(Launcher(pod).run())
