"""The agent: runs all process nodes of a cluster in one process.

`python -m llmtrain_devcluster.process_node SETTINGS_FILE`. It leaves nothing behind: every
container is a child process that the kernel kills when the agent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from llmtrain_devcluster.addresses import NODE_PORT, AddressBlock
from llmtrain_devcluster.api import Api, ApiStatusError
from llmtrain_devcluster.kubelet.pod_watch import follow
from llmtrain_devcluster.kubelet.registration import register_node, report_ready
from llmtrain_devcluster.process_node import names
from llmtrain_devcluster.process_node.container import ContainerContext
from llmtrain_devcluster.process_node.environment import PodInfo
from llmtrain_devcluster.process_node.logs import LogServer
from llmtrain_devcluster.process_node.pod import ProcessPod, pod_folder
from llmtrain_devcluster.process_node.reporter import Reporter
from llmtrain_devcluster.process_node.sandbox import Mount
from llmtrain_devcluster.process_node.settings import AgentSettings
from llmtrain_devcluster.process_node.sources import PodSources
from llmtrain_devcluster.process_node.volumes import PodVolumes

Object = dict[str, Any]

HEARTBEAT_SECONDS = 120.0
# A starting gang causes many changes at once: write /etc/hosts once for all of them.
NAMES_DELAY_SECONDS = 0.05


class Agent:
    """Runs the pods that are bound to its nodes."""

    def __init__(self, settings: AgentSettings, api: Api):
        self._settings = settings
        self._api = api
        self._folder = Path(settings.folder)
        self._block = AddressBlock()
        self._hosts = {
            spec.name: self._block.node_address(index) for index, spec in enumerate(settings.nodes)
        }
        self._pods: dict[str, ProcessPod] = {}
        self._all_pods: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self._hosts_files: dict[str, tuple[Path, str, str]] = {}
        self._names_changed = asyncio.Event()
        self._nsswitch = self._folder / "nsswitch.conf"

    async def run(self) -> None:
        """Register the nodes and serve until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._nsswitch.write_text(names.NSSWITCH)
        logs = LogServer(self.container_log, self._settings.certificate, self._settings.key)
        await logs.start(self._block.listener, list(self._hosts.values())[1:], NODE_PORT)
        try:
            for spec in self._settings.nodes:
                await register_node(self._api, spec, self._hosts[spec.name], NODE_PORT)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_pods())
                group.create_task(self._follow_services())
                group.create_task(self._write_names())
                group.create_task(self._heartbeat())
        finally:
            await asyncio.gather(*(pod.stop() for pod in self._pods.values()))
            await logs.stop()

    def container_log(
        self, namespace: str, pod_name: str, container: str, *, previous: bool
    ) -> tuple[Path, Callable[[], bool]] | None:
        """Return a container's log file, and a function that returns True while it may grow."""
        for pod in self._pods.values():
            meta = pod.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, pod_name):
                return pod.log(container, previous=previous)
        return None

    async def _follow_pods(self) -> None:
        async for kind, pod in follow(self._api, "pods", "spec.nodeName!="):
            uid = pod["metadata"]["uid"]
            if kind == "DELETED":
                self._all_pods.pop(uid, None)
                await self._forget(uid)
            else:
                self._all_pods[uid] = pod
                if uid in self._pods:
                    self._pods[uid].update(pod)
                elif pod["spec"]["nodeName"] in self._hosts:
                    self._start(pod)
            self._names_changed.set()

    async def _follow_services(self) -> None:
        async for kind, service in follow(self._api, "services"):
            uid = service["metadata"]["uid"]
            if kind == "DELETED":
                self._services.pop(uid, None)
            else:
                self._services[uid] = service
            self._names_changed.set()

    def _start(self, pod: Object) -> None:
        address = self._block.allocate()
        info = PodInfo(pod, address, self._hosts[pod["spec"]["nodeName"]])
        folder = pod_folder(self._folder, pod)
        folder.mkdir(parents=True, exist_ok=True)
        sources = PodSources(self._api, pod)
        own = names.pod_lines(
            address,
            info.hostname,
            pod["spec"].get("subdomain", ""),
            pod["metadata"]["namespace"],
        )
        hosts = folder / "hosts"
        self._hosts_files[pod["metadata"]["uid"]] = (hosts, own, pod["metadata"]["namespace"])
        self._write_hosts(self._current_names())
        context = ContainerContext(
            info=info,
            folder=folder,
            volumes=PodVolumes(
                info, folder / "volumes", sources.data, sources.token, sources.claim
            ),
            lookup=sources.data,
            images=self._settings.images,
            mounts=[
                *self._settings.mounts,
                Mount(str(hosts), "/etc/hosts"),
                Mount(str(self._nsswitch), "/etc/nsswitch.conf", read_only=True),
            ],
            backoff_seconds=self._settings.backoff_seconds,
        )
        process_pod = ProcessPod(pod, context, Reporter(self._api, pod))
        self._pods[pod["metadata"]["uid"]] = process_pod
        process_pod.start()

    async def _forget(self, uid: str) -> None:
        self._hosts_files.pop(uid, None)
        pod = self._pods.pop(uid, None)
        if pod is not None:
            await pod.stop()
            self._block.release(pod.address)

    async def _write_names(self) -> None:
        while True:
            await self._names_changed.wait()
            await asyncio.sleep(NAMES_DELAY_SECONDS)
            self._names_changed.clear()
            self._write_hosts(self._current_names())

    def _current_names(self) -> dict[str, str]:
        return names.cluster_lines(self._all_pods.values(), self._services.values())

    def _write_hosts(self, lines: dict[str, str]) -> None:
        for path, own, namespace in self._hosts_files.values():
            text = own + lines.get(namespace, lines[""])
            if not path.exists() or path.read_text() != text:
                names.rewrite(path, text)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for name in self._hosts:
                with contextlib.suppress(ApiStatusError, aiohttp.ClientError, TimeoutError):
                    await report_ready(self._api, name, "True")
