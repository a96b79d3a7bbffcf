"""Clusters that keep running after `llmtrain cluster up`; `status` and `down` find them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain_devcluster.control_plane.control_plane import (
    FOLDER_PREFIX,
    ClusterError,
    ControlPlane,
)
from llmtrain_devcluster.control_plane.credentials import write_private
from llmtrain_devcluster.control_plane.readiness import probe
from llmtrain_devcluster.go_build.tools import Progress
from llmtrain_devcluster.kubelet.statuses import NodeSpec
from llmtrain_devcluster.paths import clusters_folder
from llmtrain_devcluster.process_node.start import start_process_nodes
from llmtrain_devcluster.processes import end_process, start_time
from llmtrain_devcluster.supervisor import DEATHS

DEFAULT_NAME = "default"
STOP_SECONDS = 15.0
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DetachedCluster:
    """The state file of a cluster. Pid and start time together identify the supervisor."""

    name: str
    pid: int
    started: int
    url: str
    token: str
    kubeconfig: str
    folder: str
    nodes: Sequence[str]

    @property
    def alive(self) -> bool:
        """True while the supervisor of the cluster runs."""
        return start_time(self.pid) == self.started

    def health(self) -> str:
        """Return "ok" or a description of the problem."""
        if not self.alive:
            return "its supervisor has ended"
        deaths = Path(self.folder) / DEATHS
        if deaths.exists():
            return "; ".join(deaths.read_text().splitlines()) + f" (logs are in {self.folder})"
        return probe(f"{self.url}/readyz", self.token)


def state_file(name: str) -> Path:
    """Return the path of a cluster's state file."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"{name!r} is not a valid name for a cluster: use a-z, 0-9 and '-' inside"
        )
    return clusters_folder() / f"{name}.json"


def find(name: str) -> DetachedCluster | None:
    """Return the cluster of that name if it has a state file, whether it runs or not."""
    try:
        return DetachedCluster(**json.loads(state_file(name).read_text()))
    except FileNotFoundError:
        return None


def list_clusters() -> list[DetachedCluster]:
    """Return all clusters that have a state file, by name."""
    names = sorted(path.stem for path in clusters_folder().glob("*.json"))
    return [found for found in map(find, names) if found is not None]


def up(name: str, nodes: Sequence[NodeSpec], progress: Progress) -> DetachedCluster:
    """Start a cluster with process nodes and detach it."""
    check_free(name)
    cluster = ControlPlane(progress=progress)
    try:
        progress("starting the control plane")
        cluster.start()
        progress(f"starting {len(nodes)} process nodes")
        start_process_nodes(cluster, nodes)
        return keep(cluster, name, [node.name for node in nodes])
    finally:
        cluster.stop()


def check_free(name: str) -> None:
    """Reject the name of a running cluster; clean up after one that has ended."""
    state_file(name)
    with _exclusive():
        _check_free(name)


def keep(cluster: ControlPlane, name: str, nodes: Sequence[str]) -> DetachedCluster:
    """Detach a running cluster from this process, and write its state file."""
    path = state_file(name)
    with _exclusive():
        _check_free(name)
        config, folder, url = cluster.kubeconfig(), cluster.folder, cluster.url
        token = cluster.token()
        pid, started = cluster.detach([path])
        found = DetachedCluster(
            name, pid, started, url, token, str(config), str(folder), list(nodes)
        )
        write_private(path, json.dumps(asdict(found), indent=2) + "\n")
        return found


def _check_free(name: str) -> None:
    old = find(name)
    if old is not None and old.alive:
        raise ClusterError(
            f"the cluster {name!r} is already up (kubeconfig {old.kubeconfig}): "
            f"use it, stop it with `llmtrain cluster down --name {name}`, or choose another name"
        )
    if old is not None:
        _remove(old)


def down(name: str) -> bool:
    """Stop a cluster and remove its files; return False if there is none."""
    with _exclusive():
        found = find(name)
        if found is None:
            return False
        if not end_process(found.pid, found.started, STOP_SECONDS):
            raise ClusterError(f"process {found.pid} of the cluster {name!r} does not end: kill it")
        _remove(found)
        return True


def _remove(cluster: DetachedCluster) -> None:
    """Remove the files of a cluster whose supervisor was killed."""
    folder = Path(cluster.folder)
    if folder.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    state_file(cluster.name).unlink(missing_ok=True)


@contextmanager
def _exclusive() -> Iterator[None]:
    """Lock the state files, so that one command at a time changes them."""
    folder = clusters_folder()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
