"""Build the control plane's binaries from Go modules once, and cache them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llmtrain_devcluster.go_build.tools import (
    BuildError,
    Progress,
    Tool,
    ToolSet,
    build_command,
    print_progress,
)

KUBERNETES_VERSION = "1.37.2"
TOOLS = (
    Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Tool("kube-apiserver", "k8s", "k8s.io/kubernetes/cmd/kube-apiserver"),
    Tool("kube-controller-manager", "k8s", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Tool("kube-scheduler", "k8s", "k8s.io/kubernetes/cmd/kube-scheduler"),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """The paths of the binaries."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    scheduler: Path


def linker_flags() -> str:
    """Return linker flags that set the version; otherwise /version is v0.0.0."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    stamps = {
        "gitVersion": f"v{KUBERNETES_VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    pairs = (f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items())
    return " ".join(("-s", "-w", *pairs))


CONTROL_PLANE = ToolSet(
    title="control plane",
    cache="k8s",
    modules=Path(__file__).resolve().parent / "modules",
    tools=TOOLS,
    linker_flags=linker_flags(),
)


def find_binaries(progress: Progress | None = None) -> Binaries:
    """Return all binaries; build those that are neither in KUBEBUILDER_ASSETS nor in the cache.

    KUBEBUILDER_ASSETS often has etcd and the API server only; the others are built.
    """
    found: dict[str, Path] = {}
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for tool in TOOLS:
        if assets and os.access(Path(assets) / tool.name, os.X_OK):
            found[tool.name] = Path(assets) / tool.name
    for required in ("etcd", "kube-apiserver") if assets else ():
        if required not in found:
            raise BuildError(f"KUBEBUILDER_ASSETS={assets} has no executable {required}: unset it")
    missing = [tool for tool in TOOLS if tool.name not in found]
    if missing:
        folder = CONTROL_PLANE.build(missing, progress or print_progress)
        found.update({tool.name: folder / tool.name for tool in missing})
    return Binaries(*(found[tool.name] for tool in TOOLS))


def main() -> int:
    """Build missing binaries and print their folder."""
    return build_command(lambda: print(find_binaries().apiserver.parent))


if __name__ == "__main__":
    sys.exit(main())
