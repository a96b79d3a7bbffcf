"""Slow links of three racks of shaped network namespaces, named from the metrics of a real job.

Each pair of FSDP ranks spans another pair of racks: otherwise all groups would cross the same
uplinks. Uplinks and nodes are slowed down in turn; between them the links are as usual.

`python -m pytest tests/network/bench_slow_links.py -s` prints what was named (root).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.network.group_reports import SlowdownReport, observations
from llmtrain_core.network.links import JobRanks, LinkPath
from llmtrain_core.network.slow_links import (
    CLEAR_AFTER,
    RAISE_AFTER,
    Claim,
    JobEvidence,
    claim_of_job,
    decide_claims,
)
from llmtrain_core.network.transfer_times import LEAST_BLOCKS
from llmtrain_trainer.launcher.status_tracker import StatusTracker
from tests.support.network.racks import UPLINK_MBIT, Racks, racks
from tests.support.network.trainers import TrainerRanks, trainers
from tests.support.trainer.jobs import job_spec

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]

ORDER = (0, 2, 3, 4, 5, 1)
"""Nodes in order of rank; rack i has the nodes 2i and 2i + 1."""
UPLINKS, NODES = (0, 1, 2, 1, 0), (0, 3, 4, 1, 5)
SLOW_UPLINK_MBIT, SLOW_NODE_MBIT = UPLINK_MBIT // 6, UPLINK_MBIT // 12
MODEL = {"hiddenSize": 64, "ffnSize": 160}
"""With float64 about 1.5 MB of weights, of which an FSDP pair sends each other half."""
TRAINING = {"steps": 10_000, "globalBatchSize": 6, "microBatchSize": 1}


def path(slot: int) -> LinkPath:
    return (f"rack{slot // 2}", f"node{slot}")


class Observer:
    """The launcher of rank 0 and the operator: from reports to the named link."""

    def __init__(self) -> None:
        self.tracker = StatusTracker((0,), attempt=0)
        self.groups = JobRanks(
            Layout(data=2, replicate=3), tuple(map(path, ORDER)), 1
        ).reported_groups()
        self.claims: tuple[Claim, ...] = ()
        self.blocks = 0

    def observe(self, ranks: TrainerRanks) -> Claim | None:
        """Take one block; return the named link that slows the job down most."""
        for report in ranks.take_block():
            self.tracker.on_report(0, report)
        self.blocks += 1
        said = self.tracker.status.document()["transfers"]
        found = SlowdownReport.from_wire(said, self.groups.keys())
        if found is not None:
            evidence = JobEvidence(observations("job", found, self.groups))
            self.claims = decide_claims(self.claims, [evidence], self.blocks)
        return claim_of_job(self.claims, "job", self.blocks)


def slow_down(made: Racks, link: LinkPath) -> None:
    if len(link) == 1:
        made.shape_uplink(int(link[0].removeprefix("rack")), SLOW_UPLINK_MBIT)
    else:
        made.shape_node(int(link[1].removeprefix("node")), SLOW_NODE_MBIT)


def restore(made: Racks, link: LinkPath) -> None:
    if len(link) == 1:
        made.shape_uplink(int(link[0].removeprefix("rack")))
    else:
        made.shape_node(int(link[1].removeprefix("node")))


def test_the_slow_link_is_named(tmp_path: Path) -> None:
    spec = job_spec(data=2, replicate=3, gpus_per_node=1, architecture=MODEL, training=TRAINING)
    cases: list[LinkPath] = [*((f"rack{rack}",) for rack in UPLINKS), *map(path, NODES)]
    observer, named = Observer(), 0
    print(f"\n{'SLOW':<20}{'NAMED':<40}{'FACTOR':>8}{'CONFIDENCE':>12}")
    with racks(3, 2) as made, trainers(made, ORDER, spec, tmp_path) as ranks:
        for _ in range(LEAST_BLOCKS + 1):
            assert observer.observe(ranks) is None
        for link in cases:
            slow_down(made, link)
            blocks = (observer.observe(ranks) for _ in range(RAISE_AFTER + 1))
            claim = next((each for each in blocks if each is not None), None)
            links = () if claim is None else claim.found.links
            named += links == (link,)
            factor = 0.0 if claim is None else claim.found.factor
            confidence = 0.0 if claim is None else claim.found.confidence
            shown = " ".join("/".join(each) for each in links)
            print(f"{'/'.join(link):<20}{shown:<40}{factor:>8.1f}{confidence:>12.1%}", flush=True)
            restore(made, link)
            for _ in range(CLEAR_AFTER + 2):
                if observer.observe(ranks) is None:
                    break
            else:
                raise AssertionError(f"{link} is still named after it was restored")
    print(f"{named} of {len(cases)} named")
    assert named == len(cases)
