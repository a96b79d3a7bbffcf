"""The image of a kind node: a Debian system with containerd, the kubelet and kubeadm."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmtrain_devcluster.go_build.tools import Progress, print_progress
from llmtrain_images.base import RootFilesystem, base_image, root_filesystem
from llmtrain_images.docker_engine import DockerEngine
from llmtrain_kind.binaries import KUBERNETES_VERSION, find, kubectl
from llmtrain_kind.kubernetes_images import image_name

FILES = Path(__file__).resolve().parent / "node"
ROOT = RootFilesystem(
    suite="trixie",
    packages=(
        *("systemd", "systemd-sysv", "dbus", "kmod", "mount", "procps", "util-linux"),
        *("containerd", "runc", "containernetworking-plugins"),
        *("iptables", "ipset", "iproute2", "conntrack", "ethtool", "socat"),
    ),
)
FINISH = "/usr/local/sbin/finish-node-image"
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
EDITION = "1"
"""Increased whenever this module makes another image of the same files."""


def node_root(progress: Progress = print_progress) -> Path:
    """Return a tar file with the root file system of the nodes."""
    return root_filesystem(ROOT, progress)


def node_image(engine: DockerEngine, progress: Progress = print_progress) -> str:
    """Return the name of the node image; assemble it if the engine does not have it."""
    programs = {name: find(name, progress) for name in ("kubelet", "kubeadm")}
    programs["kubectl"] = kubectl()
    name = f"llmtrain-kind/node:{_digest(programs)}"
    if not engine.has_image(name):
        progress(f"assembling the node image once: {name}")
        _assemble(engine, base_image(engine, ROOT, progress), programs, name)
    return name


def _assemble(engine: DockerEngine, base: str, programs: dict[str, Path], name: str) -> None:
    # The engine's default network is none, so the container reaches nothing.
    container = engine.docker("create", base, "sh", "-c", _script()).stdout.strip()
    try:
        engine.docker("cp", "--quiet", f"{FILES}/.", f"{container}:/")
        for program, path in programs.items():
            engine.docker("cp", "--quiet", str(path), f"{container}:/usr/bin/{program}")
        engine.docker("start", "--attach", container)
        changes = (
            'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
            "CMD []",
            "ENV container=docker",
            "STOPSIGNAL SIGRTMIN+3",
        )
        options = [word for change in changes for word in ("--change", change)]
        engine.docker("commit", *options, container, name)
    finally:
        engine.docker("rm", "--force", "--volumes", container)


def _script() -> str:
    """Return the commands that run in the container before it becomes the image."""
    return (
        "set -e; chown -R root:root /etc/containerd /etc/systemd /kind /usr/local /usr/bin/kube*; "
        "chmod 755 /usr/bin/kube*; "
        f"sed -i 's#@PAUSE@#{image_name('pause')}#' {CONTAINERD_CONFIG}; "
        f"printf %s v{KUBERNETES_VERSION} > /kind/version; "
        f"{FINISH}; rm {FINISH}"
    )


def _digest(programs: dict[str, Path]) -> str:
    digest = hashlib.sha256(f"{EDITION} {ROOT.digest()} {KUBERNETES_VERSION}".encode())
    for path in sorted(FILES.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(FILES)} {path.stat().st_mode}".encode())
            digest.update(path.read_bytes())
    for name, program in sorted(programs.items()):
        digest.update(name.encode())
        with program.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
