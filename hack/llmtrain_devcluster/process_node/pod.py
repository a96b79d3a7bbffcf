"""Run one pod on a process node: volumes, init containers, containers, status, deletion."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_devcluster.kubelet.statuses import ContainerView, PodView, now, terminated, waiting
from llmtrain_devcluster.process_node.container import Container, ContainerContext
from llmtrain_devcluster.process_node.environment import ContainerConfigError
from llmtrain_devcluster.process_node.reporter import Reporter

Object = dict[str, Any]

VOLUME_RETRY_SECONDS = 1.0
KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    phase: str
    reason: str = ""
    message: str = ""


class ProcessPod:
    """Runs one pod until it has ended and, after its deletion, removes it."""

    def __init__(self, pod: Object, context: ContainerContext, reporter: Reporter):
        self.pod = pod
        self.address = context.info.pod_ip
        self._context = context
        self._reporter = reporter
        self._first_phase = (pod.get("status") or {}).get("phase")
        self._start_time = (pod.get("status") or {}).get("startTime") or now()
        self._outcome: _Outcome | None = None
        self._deletion = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        spec = pod["spec"]
        self._init = [self._container(one) for one in spec.get("initContainers") or ()]
        self._main = [self._container(one) for one in spec["containers"]]

    def _container(self, spec: Object) -> Container:
        return Container(spec, self._context, self._changed)

    def start(self) -> None:
        """Start the pod."""
        self.update(self.pod)
        self._task = asyncio.create_task(self._run())

    def update(self, pod: Object) -> None:
        """Apply a newer version of the pod object."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deletion.set()

    async def stop(self) -> None:
        """Kill all containers and report nothing: the pod object is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reporter.close()
        shutil.rmtree(self._context.folder, ignore_errors=True)

    def log(self, name: str, *, previous: bool) -> tuple[Path, Callable[[], bool]] | None:
        """Return a container's log file, and a function that returns True while it may grow."""
        for container in (*self._main, *self._init):
            path = container.log_file(previous=previous) if container.name == name else None
            if path is not None:
                return path, lambda: container.is_running and not previous  # noqa: B023 - we return
        return None

    async def _run(self) -> None:
        run = asyncio.create_task(self._run_to_end())
        deletion = asyncio.create_task(self._deletion.wait())
        try:
            await asyncio.wait({run, deletion}, return_when=asyncio.FIRST_COMPLETED)
            await self._deletion.wait()
            await self._terminate(run)
            if not self._ended_before():
                self._changed()
                await self._reporter.flush()
            await self._reporter.remove()
        finally:
            for task in (run, deletion):
                task.cancel()
            await asyncio.gather(run, deletion, return_exceptions=True)

    async def _run_to_end(self) -> None:
        if self._ended_before() or self._was_orphaned():
            return
        self._changed()
        seconds = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            async with asyncio.timeout(seconds):
                await self._run_containers()
        except TimeoutError:
            message = "Pod was active on the node longer than the specified deadline"
            self._outcome = _Outcome("Failed", "DeadlineExceeded", message)
        except Exception as error:
            # Report every error in the pod's status: users do not read the agent's log.
            traceback.print_exc()
            self._outcome = _Outcome("Failed", "NodeAgentError", f"{type(error).__name__}: {error}")
        self._changed()

    def _ended_before(self) -> bool:
        return self._first_phase in ("Succeeded", "Failed")

    def _was_orphaned(self) -> bool:
        """Return True, and fail the pod, if an earlier agent ran it: its processes have ended."""
        ran = (self.pod.get("status") or {}).get("containerStatuses") or ()
        if self.pod["spec"].get("restartPolicy") != "Never":
            return False
        if not any("running" in one["state"] for one in ran):
            return False
        self._outcome = _Outcome("Failed", "NodeAgentRestarted", "the node's agent was restarted")
        self._changed()
        return True

    async def _run_containers(self) -> None:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        await self._make_volumes()
        for container in self._init:
            if await container.run(policy, is_init=True) != 0:
                self._outcome = _Outcome("Failed")
                return
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(one.run(policy)) for one in self._main]
        failed = any(run.result() != 0 for run in runs)
        self._outcome = _Outcome("Failed" if failed else "Succeeded")

    async def _make_volumes(self) -> None:
        while True:
            try:
                await self._context.volumes.make()
                return
            except ContainerConfigError as error:
                self._reporter.event("FailedMount", str(error))
                await asyncio.sleep(VOLUME_RETRY_SECONDS)

    async def _terminate(self, run: asyncio.Task[None]) -> None:
        """Terminate a deleted pod: SIGTERM, grace period, SIGKILL."""
        containers = [*self._init, *self._main]
        running = [one for one in containers if one.is_running]
        for container in containers:
            container.terminate()
        if not running:
            return
        meta, spec = self.pod["metadata"], self.pod["spec"]
        grace = meta.get("deletionGracePeriodSeconds", spec.get("terminationGracePeriodSeconds"))
        await _all_ended(running, float(30 if grace is None else grace))
        for container in running:
            container.kill()
        await _all_ended(running, KILL_SECONDS)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(run), 1.0)

    def _changed(self) -> None:
        self._reporter.report(self._view())

    def _view(self) -> PodView:
        init = [self._final(one.view()) for one in self._init]
        main = [self._final(one.view()) for one in self._main]
        outcome = self._outcome or self._outcome_of_deleted(main)
        has_address = any("waiting" not in view.state for view in [*init, *main])
        return PodView(
            phase=outcome.phase,
            containers=main,
            init_containers=init,
            pod_ip=self.address if has_address else "",
            host_ip=self._context.info.host_ip,
            start_time=self._start_time,
            reason=outcome.reason,
            message=outcome.message,
        )

    def _outcome_of_deleted(self, main: Sequence[ContainerView]) -> _Outcome:
        started = any("waiting" not in view.state or view.restarts for view in main)
        if self._deletion.is_set() and all(view.exit_code is not None for view in main):
            failed = any(view.exit_code for view in main)
            return _Outcome("Failed" if failed else "Succeeded")
        return _Outcome("Running" if started else "Pending")

    def _final(self, view: ContainerView) -> ContainerView:
        """Return the final state of a container whose pod was ended by the agent."""
        if self._outcome is None or not self._outcome.reason or view.exit_code is not None:
            return view
        state = waiting("PodInitializing")
        if "running" in view.state or self._outcome.reason == "NodeAgentRestarted":
            since = view.state.get("running", {}).get("startedAt", self._start_time)
            reason = "ContainerStatusUnknown" if "waiting" in view.state else "Error"
            state = terminated(137, since, reason=reason)
        return ContainerView(view.name, view.image, state, view.last_state, False, view.restarts)


async def _all_ended(containers: Sequence[Container], seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while any(one.is_running for one in containers):
        if asyncio.get_running_loop().time() >= deadline:
            return
        await asyncio.sleep(0.05)


def pod_folder(base: Path, pod: Object) -> Path:
    """Return the folder of a pod on the host."""
    return base / str(pod["metadata"]["uid"])
