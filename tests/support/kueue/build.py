"""Build Kueue once: `python -m tests.support.kueue.build`."""

from __future__ import annotations

import sys

from llmtrain_devcluster.go_build.golang import GoMissingError
from llmtrain_devcluster.go_build.tools import (
    BuildError,
    ModuleFolder,
    Tool,
    ToolSet,
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
    try:
        print(KUEUE.build(KUEUE.tools, print_progress))
    except (BuildError, GoMissingError) as error:
        print_progress(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
