"""One pod on a scripted node: its script, and the statuses that follow from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.kubelet.pod_status import remove_pod, write_status
from llmtrain_devcluster.kubelet.statuses import (
    ContainerView,
    PodView,
    now,
    running,
    terminated,
    waiting,
)

Pod = dict[str, Any]

NEVER_STARTS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"}
)


@dataclass(frozen=True, slots=True)
class PodScript:
    """The states of a pod. Times are in seconds; `exit_after` None: it runs until deleted.

    A `reason` that means "cannot start" (ImagePullBackOff, ...) keeps the pod waiting
    forever, with the message `termination_message` if it is given; another one (OOMKilled, ...) is
    the reason of its termination. `evicted` fails the whole pod with that reason, as node pressure
    does. `rejected` fails it with that reason before a container starts, as a kubelet does that
    does not admit the pod. With `sidecars_run`, all containers but the first one run until the pod
    is deleted. A running pod that is resized gets what it wants at once, unless `resizes` is false.
    """

    runs_after: float = 0.0
    exit_after: float | None = 3.0
    exit_code: int = 0
    reason: str = ""
    termination_message: str = ""
    ready: bool = True
    evicted: bool = False
    rejected: bool = False
    hang_on_delete: bool = False
    delete_after: float = 0.0
    sidecars_run: bool = False
    resizes: bool = True


@dataclass(frozen=True, slots=True)
class _End:
    code: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Resize:
    """The pod has other resources than those that were reported."""


class ScriptedPod:
    """Writes the statuses of one pod, starting with its current one."""

    def __init__(self, api: Api, pod: Pod, script: PodScript, address: str, host: str):
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.node: str = pod["spec"]["nodeName"]
        self.address = address
        self.script = script
        self._api = api
        self._pod = pod
        self._host = host
        self._start_time = ""
        self._started = ""
        self._last_state: Pod = {}
        self._restarts = 0
        self._finished: _End | None = None
        self._allocated = _resources(pod)
        self._events: asyncio.Queue[_End | _Resize] = asyncio.Queue()
        self._deleted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start or continue the script."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop the script."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def update(self, pod: Pod) -> None:
        """Apply a newer version of the pod object."""
        self._pod = pod
        if self.script.resizes and (wanted := _resources(pod)) != self._allocated:
            self._allocated = wanted
            self._events.put_nowait(_Resize())
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def end(self, code: int, reason: str = "", message: str = "") -> None:
        """Terminate the containers now."""
        self._events.put_nowait(_End(code, reason, message))

    async def remove(self) -> None:
        """Remove the pod from the API server, the last action of a kubelet."""
        await remove_pod(self._api, self._pod["metadata"])

    async def _run(self) -> None:
        self.update(self._pod)
        script = asyncio.create_task(self._run_script())
        deletion = asyncio.create_task(self._deleted.wait())
        try:
            await asyncio.wait({script, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if not self._deleted.is_set():
                script.result()
                await deletion
            await _cancelled(script)
            await self._terminate()
        finally:
            await _cancelled(script)
            await _cancelled(deletion)

    async def _run_script(self) -> None:
        phase = (self._pod.get("status") or {}).get("phase")
        if self._finished or phase in ("Succeeded", "Failed"):
            return
        self._start_time = self._start_time or now()
        if self.script.rejected:
            await self._reject()
            return
        if self.script.reason in NEVER_STARTS:
            image = self._pod["spec"]["containers"][0]["image"]
            message = self.script.termination_message or f'Back-off pulling image "{image}"'
            await self._report("Pending", waiting(self.script.reason, message))
            return
        if not self._started:
            if self.script.runs_after:
                await self._report("Pending", waiting("ContainerCreating"))
                await asyncio.sleep(self.script.runs_after)
            self._started = now()
        while True:
            await self._report("Running", running(self._started))
            end = await self._next_end()
            if not self._restarts_after(end):
                break
            self._last_state = terminated(
                end.code, self._started, reason=end.reason, message=end.message
            )
            self._restarts += 1
            self._started = now()
        self._finished = end
        await self._report_end(end)

    async def _reject(self) -> None:
        text = f"Pod was rejected: {self.script.termination_message}"
        view = PodView("Failed", (), reason=self.script.reason, message=text)
        await write_status(self._api, self._pod["metadata"], view.to_json())

    async def _next_end(self) -> _End:
        """Return how the containers end. Until then, report each resize."""
        script = self.script
        after = script.exit_after
        ends_at = None if after is None else asyncio.get_running_loop().time() + after
        try:
            while True:
                async with asyncio.timeout_at(ends_at):
                    event = await self._events.get()
                if isinstance(event, _End):
                    return event
                await self._report("Running", running(self._started))
        except TimeoutError:
            return _End(script.exit_code, script.reason, script.termination_message)

    def _restarts_after(self, end: _End) -> bool:
        policy = self._pod["spec"].get("restartPolicy", "Always")
        return policy == "Always" or (policy == "OnFailure" and end.code != 0)

    async def _report_end(self, end: _End) -> None:
        phase = "Succeeded" if end.code == 0 else "Failed"
        if self.script.sidecars_run and len(self._pod["spec"]["containers"]) > 1:
            phase = "Running"
        state = terminated(end.code, self._started, reason=end.reason, message=end.message)
        await self._report(phase, state)

    async def _terminate(self) -> None:
        """Terminate a deleted pod: write its terminated status, then remove the object."""
        if self.script.hang_on_delete:
            await asyncio.Event().wait()
        await asyncio.sleep(self.script.delete_after)
        if self._started and not self._finished:
            self._finished = _End(143, "Error")
            await self._report_end(self._finished)
        await self.remove()

    async def _report(self, phase: str, state: Pod) -> None:
        spec = self._pod["spec"]
        ready = "running" in state and self.script.ready
        evicted = self.script.evicted and phase == "Failed"
        sidecar = running(self._started) if phase == "Running" else state
        view = PodView(
            phase=phase,
            containers=[
                ContainerView(
                    container["name"],
                    container["image"],
                    state if index == 0 else sidecar,
                    last_state=self._last_state,
                    ready=ready if index == 0 else "running" in sidecar,
                    restarts=self._restarts,
                    container_id=self._container_id(container["name"], state),
                    resources=self._allocated[container["name"]],
                )
                for index, container in enumerate(spec["containers"])
            ],
            init_containers=[
                ContainerView(
                    container["name"],
                    container["image"],
                    terminated(0, self._start_time),
                    ready=True,
                )
                for container in spec.get("initContainers") or ()
            ],
            pod_ip=self.address if "waiting" not in state else "",
            host_ip=self._host,
            start_time=self._start_time,
            reason=self.script.reason if evicted else "",
            message=self.script.termination_message if evicted else "",
        )
        await write_status(self._api, self._pod["metadata"], view.to_json())

    def _container_id(self, container: str, state: Pod) -> str:
        if "waiting" in state:
            return ""
        return f"scripted://{self._pod['metadata']['uid']}/{container}/{self._restarts}"


def _resources(pod: Pod) -> dict[str, Pod]:
    return {one["name"]: one.get("resources", {}) for one in pod["spec"]["containers"]}


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
