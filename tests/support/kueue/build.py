"""Build Kueue once: `python -m tests.support.kueue.build`."""

from __future__ import annotations

import sys

from llmtrain_devcluster.go_build.tools import (
    ModuleFolder,
    Tool,
    ToolSet,
    build_command,
    print_progress,
)
from tests.support.paths import ROOT

MODULE = "sigs.k8s.io/kueue"
SERVER = Tool("kueue", "kueue", f"{MODULE}/cmd/kueue")
DEFINITIONS = ModuleFolder("crds", SERVER, MODULE, "config/components/crd/bases")
WEBHOOKS = ModuleFolder("webhooks", SERVER, MODULE, "config/components/webhook")
KUEUE = ToolSet(
    title="Kueue",
    cache="kueue",
    modules=ROOT / "hack",
    tools=(SERVER,),
    folders=(DEFINITIONS, WEBHOOKS),
)


def main() -> int:
    """Build Kueue if it is missing and print its folder."""
    return build_command(lambda: print(KUEUE.build(KUEUE.tools, print_progress)))


if __name__ == "__main__":
    sys.exit(main())
