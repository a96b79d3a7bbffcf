"""The network tree of a real training cluster: 847 hosts of Alibaba's Lingjun, August 2023.

Source: alibaba/alibaba-lingjun-dataset-2023 (Apache-2.0), data/topo.csv: one core switch (DSW),
three pods (PSW) of 362, 306 and 179 hosts, 119 leaves (PSW, ASW) of 2 to 8 hosts. The file lies in
`shared/data` beside the clone; `LLMTRAIN_SHARED` names another folder than `../shared`.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from tests.support.paths import ROOT
from tests.support.placement.cases import GPU

_BESIDE = ROOT.parent / "shared"


def real_nodes() -> list[Node]:
    """Return the hosts with their switches as labels. Raises FileNotFoundError with a remedy."""
    folder = Path(os.environ.get("LLMTRAIN_SHARED", _BESIDE))
    file = folder / "data" / "alibaba-lingjun-2023-topo.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: put the shared folder beside the clone, or set LLMTRAIN_SHARED"
            " to it (the file is data/topo.csv of alibaba/alibaba-lingjun-dataset-2023)"
        )
    with file.open(newline="") as rows:
        return [
            Node(f"host-{row['ip'][:12]}", {"PSW": row["PSW"], "ASW": row["ASW"]}, {GPU: 8})
            for row in csv.DictReader(rows)
        ]


def real_levels(spine: float, leaf: float) -> Levels:
    """Return the two levels above the host, with their oversubscription."""
    return FabricLevel("spine", "PSW", spine), FabricLevel("leaf", "ASW", leaf), NODE
