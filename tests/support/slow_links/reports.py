"""Reports of jobs whose groups are slower where they cross certain links."""

from __future__ import annotations

import random
from collections.abc import Collection
from math import log
from typing import Any

from llmtrain_core.network.group_reports import GroupSlowdown, SlowdownReport
from llmtrain_core.network.links import JobRanks, LinkPath


def report_of(
    ranks: JobRanks, block: int, slow: Collection[LinkPath] = (), factor: float = 3.0
) -> dict[str, Any]:
    """Return `transfers` of `/status`, with noise of one percent."""
    noise = random.Random(block)
    return SlowdownReport(
        block,
        tuple(
            GroupSlowdown(
                key,
                noise.gauss(0.0, 0.01) + (0.0 if group.links.isdisjoint(slow) else log(factor)),
                0.02,
            )
            for key, group in ranks.reported_groups().items()
        ),
    ).to_wire()
