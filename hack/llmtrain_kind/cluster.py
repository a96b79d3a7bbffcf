"""A kind cluster of one control plane node and two workers: `kind_cluster(engine)`.

No image registry and no other host is reached. The nodes share the files of their images, enforce
NetworkPolicies, and resolve names of the cluster only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_devcluster.paths import cache_root
from llmtrain_images.docker_engine import DockerEngine
from llmtrain_kind.addons import install_addons
from llmtrain_kind.binaries import find
from llmtrain_kind.guard import Guard, guarded_network
from llmtrain_kind.image_store import CONTAINERD, clone, image_store
from llmtrain_kind.kubectl import Kubectl
from llmtrain_kind.node_image import node_image

NAME = "llmtrain"
WORKERS = ("llmtrain-worker", "llmtrain-worker2")
CONTROL_PLANE = "llmtrain-control-plane"
READY = "180s"


class KindError(RuntimeError):
    """kind failed; the message is the end of its output."""


@dataclass(frozen=True, slots=True)
class KindCluster:
    """A running cluster."""

    engine: DockerEngine
    guard: Guard
    kubeconfig: Path

    @property
    def kubectl(self) -> Kubectl:
        """The administrator's kubectl."""
        return Kubectl(self.kubeconfig)

    def stop_node(self, name: str) -> None:
        """Stop a node at once, as a power failure does."""
        self.engine.docker("kill", name)

    def start_node(self, name: str) -> None:
        """Start a stopped node."""
        self.engine.docker("start", name)

    def on_node(self, name: str, *command: str) -> str:
        """Run a command on a node and return its output."""
        return self.engine.docker("exec", name, *command).stdout


@contextmanager
def kind_cluster(
    engine: DockerEngine, images: Sequence[str] = (), progress: Progress = print_progress
) -> Iterator[KindCluster]:
    """Create a cluster whose workers have these images of the engine; delete it at the end."""
    node = node_image(engine, progress)
    stores = {
        CONTROL_PLANE: image_store(engine, node, (), progress),
        **dict.fromkeys(WORKERS, image_store(engine, node, images, progress)),
    }
    with guarded_network(engine) as guard, _clones(stores) as clones:
        folder = Path(tempfile.mkdtemp(prefix="llmtrain-kind-"))
        kubeconfig = folder / "kubeconfig"
        where = ("--name", NAME, "--kubeconfig", str(kubeconfig))
        try:
            guard.check()
            progress("creating the cluster")
            create = ("create", "cluster", *where, "--image", node, "--wait", READY)
            _kind(engine, *create, "--config", "-", text=json.dumps(_config(clones)))
            cluster = KindCluster(engine, guard, kubeconfig)
            install_addons(cluster.kubectl)
            yield cluster
        finally:
            _kind(engine, "delete", "cluster", *where)
            shutil.rmtree(folder)


def _config(clones: dict[str, Path]) -> dict[str, object]:
    def node(name: str) -> dict[str, object]:
        role = "control-plane" if name == CONTROL_PLANE else "worker"
        mount = {"hostPath": str(clones[name]), "containerPath": CONTAINERD}
        return {"role": role, "extraMounts": [mount]}

    kubelet = {"kind": "KubeletConfiguration", "failCgroupV1": False}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {"ipFamily": "ipv4", "apiServerAddress": "127.0.0.1"},
        "kubeadmConfigPatches": [json.dumps(kubelet)],
        "nodes": [node(name) for name in clones],
    }


@contextmanager
def _clones(stores: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Yield a folder with images for each node, on the disk of the stores, as links need."""
    parent = cache_root() / "kind" / "nodes"
    # A cluster whose process was killed leaves its folders.
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir(parents=True)
    try:
        for node, store in stores.items():
            clone(store, parent / node)
        yield {node: parent / node for node in stores}
    finally:
        shutil.rmtree(parent)


def _kind(engine: DockerEngine, *arguments: str, text: str = "") -> None:
    done = subprocess.run(
        [str(find("kind")), *arguments],
        env=engine.environment(),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-30:])
        raise KindError(f"kind {' '.join(arguments[:2])} failed:\n{tail}")
