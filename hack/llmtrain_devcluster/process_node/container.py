"""Run one container of a pod in a sandbox: start, probe, restart, end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES
from llmtrain_devcluster.kubelet.statuses import (
    ContainerView,
    now,
    running,
    terminated,
    waiting,
)
from llmtrain_devcluster.process_node.environment import (
    ContainerConfigError,
    Lookup,
    PodInfo,
    resolve_command,
    resolve_env,
)
from llmtrain_devcluster.process_node.images import Image, is_valid
from llmtrain_devcluster.process_node.probes import follow_readiness
from llmtrain_devcluster.process_node.sandbox import START_FAILED, Mount, Sandbox
from llmtrain_devcluster.process_node.volumes import PodVolumes

Object = dict[str, Any]

CONFIG_RETRY_SECONDS = 2.0
BACKOFF_LIMIT_SECONDS = 300.0
# A container that ran this long has recovered: its next restart is immediate again.
BACKOFF_RESET_SECONDS = 600.0
LOG_FALLBACK_BYTES = 2048
SANDBOX_MODULE = "llmtrain_devcluster.process_node.sandbox"


@dataclass(frozen=True, slots=True)
class ContainerContext:
    """The data that all containers of a pod share."""

    info: PodInfo
    folder: Path
    volumes: PodVolumes
    lookup: Lookup
    images: Mapping[str, Image]
    mounts: Sequence[Mount]
    backoff_seconds: float


class Container:
    """One container, from its image to its last exit code."""

    def __init__(self, spec: Object, context: ContainerContext, changed: Callable[[], None]):
        self.spec = spec
        self.name: str = spec["name"]
        self._context = context
        self._changed = changed
        self._folder = context.folder / self.name
        main_waits = bool(context.info.pod["spec"].get("initContainers"))
        self._state: Object = waiting("PodInitializing" if main_waits else "ContainerCreating")
        self._last_state: Object = {}
        self._ready = False
        self._restarts = 0
        self._ending = False
        self._process: asyncio.subprocess.Process | None = None

    def view(self) -> ContainerView:
        """Return the container's status."""
        started = "waiting" not in self._state or bool(self._last_state)
        return ContainerView(
            self.name,
            self.spec["image"],
            self._state,
            last_state=self._last_state,
            ready=self._ready,
            restarts=self._restarts,
            container_id=self._container_id() if started else "",
        )

    def log_file(self, *, previous: bool = False) -> Path | None:
        """Return the log of the current run, or of the previous one."""
        path = self._folder / f"{self._restarts - previous}.log"
        return path if path.exists() else None

    async def run(self, restart_policy: str, *, is_init: bool = False) -> int:
        """Run the container, with its restarts; return the last exit code."""
        delay = 0.0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._run_once(is_init=is_init)
            if self._ending or not _restarts(restart_policy, code, is_init=is_init):
                return code
            if loop.time() - started > BACKOFF_RESET_SECONDS:
                delay = 0.0
            self._last_state = self._state
            if delay:
                message = f"back-off {delay:g}s restarting failed container={self.name}"
                self._set(waiting("CrashLoopBackOff", message))
                await asyncio.sleep(delay)
            delay = min(max(2 * delay, self._context.backoff_seconds), BACKOFF_LIMIT_SECONDS)
            self._restarts += 1

    async def _run_once(self, *, is_init: bool) -> int:
        image = await self._pull()
        sandbox = await self._prepare(image)
        if self._ending:
            await asyncio.Event().wait()
        message_file = self._folder / f"{self._restarts}.termination"
        log_path = self._folder / f"{self._restarts}.log"
        with log_path.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                SANDBOX_MODULE,
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )
        probe: asyncio.Task[None] | None = None
        started_at = now()
        try:
            assert process.stdin is not None
            process.stdin.write(sandbox.to_json().encode())
            process.stdin.close()
            self._ready = not is_init and "readinessProbe" not in self.spec
            self._set(running(started_at))
            probe = self._start_probe(is_init=is_init)
            code = await process.wait()
        finally:
            if probe is not None:
                probe.cancel()
            await self._kill()
        self._ready = is_init and code == 0
        message = self._termination_message(code, message_file, log_path)
        reason = "StartError" if code == START_FAILED else ""
        identity = self._container_id()
        self._set(
            terminated(code, started_at, reason=reason, message=message, container_id=identity)
        )
        return code

    async def _pull(self) -> Image:
        """Return the image. Wait forever if there is no such image, as a kubelet does."""
        reference = self.spec["image"]
        if not is_valid(reference):
            message = f'Failed to apply default image tag "{reference}": invalid reference format'
            self._set(waiting("InvalidImageName", message))
            await asyncio.Event().wait()
        if reference not in self._context.images:
            known = ", ".join(sorted(self._context.images))
            why = f'failed to pull image "{reference}": not found (process nodes have: {known})'
            self._set(waiting("ErrImagePull", why))
            await asyncio.sleep(1.0)
            self._set(waiting("ImagePullBackOff", f'Back-off pulling image "{reference}": {why}'))
            await asyncio.Event().wait()
        return self._context.images[reference]

    async def _prepare(self, image: Image) -> Sandbox:
        """Resolve all references of the container; retry while one is missing."""
        while True:
            try:
                return await self._sandbox(image)
            except ContainerConfigError as error:
                self._set(waiting("CreateContainerConfigError", str(error)))
                await asyncio.sleep(CONFIG_RETRY_SECONDS)

    async def _sandbox(self, image: Image) -> Sandbox:
        context = self._context
        home = "/root" if os.geteuid() == 0 else "/tmp"
        base = {"HOME": home, "HOSTNAME": context.info.hostname, **image.env}
        # The GPUs of a process node are simulated: containers must not find a real one.
        base["NVIDIA_VISIBLE_DEVICES"] = "void"
        env = await resolve_env(self.spec, context.info, base, context.lookup)
        command = resolve_command(self.spec, env, tuple(image.command))
        self._folder.mkdir(parents=True, exist_ok=True)
        message_file = self._folder / f"{self._restarts}.termination"
        message_file.touch()
        message_file.chmod(0o666)
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        path = self.spec.get("terminationMessagePath") or "/dev/termination-log"
        return Sandbox(
            command=command,
            env=env,
            work_dir=self.spec.get("workingDir") or "/",
            hostname=context.info.hostname,
            scratch=str(scratch),
            mounts=[
                *context.mounts,
                *context.volumes.mounts(self.spec),
                Mount(str(message_file), path),
            ],
        )

    def _start_probe(self, *, is_init: bool) -> asyncio.Task[None] | None:
        probe = self.spec.get("readinessProbe")
        if is_init or not probe:
            return None

        def report(ready: bool) -> None:
            self._ready = ready
            self._changed()

        address = self._context.info.pod_ip
        return asyncio.create_task(follow_readiness(probe, self.spec, address, report))

    def _termination_message(self, code: int, message_file: Path, log: Path) -> str:
        message = message_file.read_bytes()[:TERMINATION_MESSAGE_BYTES].decode(errors="replace")
        policy = self.spec.get("terminationMessagePolicy", "File")
        if not message and code == START_FAILED:
            return _tail(log)
        if not message and code != 0 and policy == "FallbackToLogsOnError":
            return _tail(log)
        return message

    def terminate(self) -> None:
        """Send SIGTERM to the container's first process, and do not restart it."""
        self._ending = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process of the container."""
        self._signal(signal.SIGUSR1)

    @property
    def is_running(self) -> bool:
        """True while the container has a process."""
        return self._process is not None and self._process.returncode is None

    async def _kill(self) -> None:
        """Kill the sandbox, and with it all processes of the container."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def _set(self, state: Object) -> None:
        self._state = state
        self._changed()

    def _container_id(self) -> str:
        uid = self._context.info.pod["metadata"]["uid"]
        return f"process://{uid}/{self.name}/{self._restarts}"


def _restarts(policy: str, code: int, *, is_init: bool) -> bool:
    if policy == "Never" or (is_init and code == 0):
        return False
    return policy == "Always" or code != 0


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_FALLBACK_BYTES))
        return stream.read().decode(errors="replace")
