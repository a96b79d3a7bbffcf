"""Container images that a node has before anything is deployed, named as kubeadm names them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from llmtrain_kind.binaries import KUBERNETES_VERSION, find
from llmtrain_kind.image_archive import ContainerImage, write_layer

STATIC = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
"""Images with one static program."""
ROUTER = "llmtrain-kind/kube-router:1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageNameError(RuntimeError):
    """kubeadm names no such image."""


def image_name(program: str) -> str:
    """Return the name under which kubeadm runs a program."""
    for name in _kubeadm_images():
        if name.rpartition(":")[0].rpartition("/")[2] == program:
            return name
    raise ImageNameError(f"kubeadm lists no image for {program}")


@cache
def _kubeadm_images() -> tuple[str, ...]:
    command = [
        str(find("kubeadm")),
        "config",
        "images",
        "list",
        "--kubernetes-version",
        f"v{KUBERNETES_VERSION}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def kubernetes_images(node_root: Path, folder: Path) -> Sequence[ContainerImage]:
    """Return the images; their layers are written into `folder`.

    kube-proxy and kube-router call iptables, so they are based on the root file system of the
    nodes. So is the pause container, which only has to sleep: containerd ends it by SIGKILL.
    """
    images = []
    for program in STATIC:
        layer = write_layer(folder / f"{program}.tar", {f"usr/local/bin/{program}": find(program)})
        images.append(ContainerImage(image_name(program), (layer,), env={"PATH": "/usr/local/bin"}))
    layer = write_layer(folder / "coredns.tar", {"coredns": find("coredns")})
    images.append(ContainerImage(image_name("coredns"), (layer,), ("/coredns",)))
    for program, name in (("kube-proxy", image_name("kube-proxy")), ("kube-router", ROUTER)):
        layer = write_layer(folder / f"{program}.tar", {f"usr/local/bin/{program}": find(program)})
        images.append(ContainerImage(name, (node_root, layer), env={"PATH": PATH}))
    pause = image_name("pause")
    images.append(ContainerImage(pause, (node_root,), ("/usr/bin/sleep", "infinity")))
    return images
