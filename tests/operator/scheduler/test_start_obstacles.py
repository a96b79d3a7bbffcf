"""The operator and the command line give the same answer about where a pod can start."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from llmtrain_cli.commands.place import obstacles_by_node, request_on
from llmtrain_cli.io.cluster_view import ClusterSources, read_cluster
from llmtrain_cli.io.files import read_manifest
from llmtrain_cli.main import app
from llmtrain_core.placement import Placement, place
from llmtrain_core.queueing import Assignment
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.cache.placement_status import placement_status
from llmtrain_operator.cache.records import is_followed
from llmtrain_operator.config import Config, parse
from llmtrain_operator.kube.api import Item, KubeApi
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler.cycle import decide
from llmtrain_operator.scheduler.snapshot import ClusterReader
from llmtrain_operator.scheduler.usage import used_by_others
from tests.support.cluster_files import listed
from tests.support.operator_harness.observed import pod
from tests.support.operator_harness.random_cluster import (
    GPU,
    PLENTY,
    RandomCluster,
    random_cluster,
    without,
)
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit

CLUSTERS = range(
    first := int(os.environ.get("LLMTRAIN_FUZZ_SEED", "0")),
    first + int(os.environ.get("LLMTRAIN_FUZZ_CLUSTERS", "200")),
)
"""Seeds of the clusters. `make fuzz-clusters` has others."""
PARTS = ("health", "network", "resize", *PLENTY)


class OperatorView:
    """A cluster as the informers of an operator hold it."""

    def __init__(self, cluster: RandomCluster):
        handlers = ChangeHandlers(*[lambda *_: None] * 7)
        self.informers = Informers(cast(KubeApi, None), None, True, handlers, Metrics())
        for node in cluster.nodes:
            self.informers.nodes._upsert(Item(node))
        for raw in cluster.pods:
            followed = is_followed(raw, None)
            where = self.informers.pods if followed else self.informers.foreign_pods
            where._upsert(Item(raw))
        self.job = cluster.job
        self.informers.jobs._upsert(Item(self.job))
        self.reader = ClusterReader(self.informers, CheckedJobs(), lambda *_: frozenset(), Config())

    def decide(self) -> Assignment | None:
        """Return the nodes that the job gets in a scheduling cycle."""
        found = decide(self.reader.pending_jobs(), self.reader.cluster_state({})).pending["job"]
        return found if isinstance(found, Assignment) else None

    def accept(self, assignment: Assignment) -> None:
        status = {"placement": placement_status(assignment).to_wire()}
        if assignment.network is not None:
            status["network"] = network_status(assignment.network).to_wire()
        metadata = {**self.job["metadata"], "resourceVersion": "2"}
        self.informers.jobs._upsert(Item({**self.job, "metadata": metadata, "status": status}))

    def startable(self) -> set[str]:
        """The nodes on which a pod of the job can start now."""
        [job] = self.informers.jobs.values()
        nodes = self.informers.all_nodes()
        return {node.name for node in nodes if not self.reader.start_obstacles(job, node)}


def shown(cluster: RandomCluster, folder: Path) -> tuple[str, set[str], set[str]]:
    """Return network, nodes where a pod can start, and placement by `place`.

    `llmtrain topology` shows the same nodes.
    """

    def write(name: str, document: dict[str, Any]) -> str:
        (folder / name).write_text(json.dumps(document))
        return str(folder / name)

    nodes = write("nodes.json", listed("Node", *cluster.nodes))
    pods = write("pods.json", listed("Pod", *cluster.pods))
    view = read_cluster(ClusterSources(nodes, pods))
    request = request_on(view, *read_manifest(write("job.json", cluster.job)))
    answer = place(request, view.snapshot)
    placed = {node.name for node in answer.nodes} if isinstance(answer, Placement) else set()
    network = request.chosen_network
    startable = cluster.names - obstacles_by_node(request, view.snapshot).keys()
    files = ["--nodes", nodes, "--pods", pods, "-f", str(folder / "job.json")]
    shown = CliRunner().invoke(app, ["topology", *files, "-o", "json"])
    listed_nodes = json.loads(shown.stdout)["nodes"]
    assert {node["name"] for node in listed_nodes if not node["obstacles"]} == startable
    return "" if network is None else network.row, startable, placed


@pytest.mark.parametrize("seed", CLUSTERS)
def test_on_random_clusters_all_give_the_same_answer(seed: int, tmp_path: Path) -> None:
    cluster = random_cluster(seed)
    expected = cluster.networks()

    network, startable, placed = shown(cluster, tmp_path)
    assert startable == expected.get(network, set())
    assert bool(placed) == cluster.fits() and placed <= startable

    operator = OperatorView(cluster)
    assert operator.startable() == cluster.startable()
    assignment = operator.decide()
    assert (assignment is not None) == cluster.fits()
    if assignment is not None:
        assert assignment.network is not None and assignment.network.row == network
        assert set(assignment.nodes) <= expected[network]
        assert len(assignment.nodes) == cluster.size
        operator.accept(assignment)
        needs_efa = network == "aws-efa"
        assert operator.startable() == cluster.startable("2" if needs_efa else "0")


def test_every_kind_of_pressure_decides_in_some_of_the_clusters() -> None:
    fitting, decided = 0, Counter[str]()
    for seed in CLUSTERS:
        cluster = random_cluster(seed)
        found = cluster.networks()
        fitting += cluster.fits()
        decided.update(part for part in PARTS if without(cluster, part).networks() != found)
    print(f"\n{fitting} of {len(CLUSTERS)} gangs fit; decided by {dict(decided)}")
    assert len(CLUSTERS) / 4 < fitting < len(CLUSTERS) * 3 / 4
    assert min(decided[part] for part in PARTS) >= 10


def test_a_cycle_decides_with_the_window_of_the_flag() -> None:
    view = OperatorView(random_cluster(0))
    config = parse(["--unknown-start-window=60"])
    reader = ClusterReader(view.informers, CheckedJobs(), lambda *_: frozenset(), config)
    assert reader.cluster_state({}).unknown_start_window == 60.0


def test_the_pods_of_the_job_itself_do_not_stand_in_its_way() -> None:
    own, other = pod(0, resources=(("cpu", 4000),)), pod(1, node="n0", owner="x")
    ended = pod(2, "Failed", node="n0", owner="x")
    waiting = pod(3, "Pending", node="n0", owner="x", bound=False)
    used = used_by_others(
        record("uid"), "n0", (GPU, "cpu"), (own, other, ended, waiting), {("n0", "cpu"): 500}
    )
    assert used == {("n0", GPU): 2, ("n0", "cpu"): 500}
