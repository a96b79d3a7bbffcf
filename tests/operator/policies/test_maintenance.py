"""Rolling maintenance every ten minutes. Pure: the decisions are real, the cluster is not."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.operator_harness.maintenance import MaintainedCluster

pytestmark = pytest.mark.unit

NODES, NODE_HOURS = 64, 2000
DRAIN_SECONDS, CHECKPOINT_SECONDS = 600.0, 300.0
GANGS = (32, 16, 8, 4)


def maintained(kind: str, node_hours: int) -> tuple[MaintainedCluster, float]:
    """Drain or end each node in turn; return the cluster and the goodput."""
    cluster = MaintainedCluster(NODES, GANGS, CHECKPOINT_SECONDS)
    end = node_hours / NODES * 3600
    count = int(end / DRAIN_SECONDS)
    for number in range(1, count + 1):
        event = partial(getattr(cluster, kind), f"n{number % NODES}")
        cluster.after(number * DRAIN_SECONDS, event)
    cluster.run(end)
    jobs = cluster.jobs.values()
    trained = sum(job.saved * job.checked.nodes for job in jobs)
    lost = sum(job.lost * job.checked.nodes for job in jobs)
    whole = sum(GANGS) * end
    print(
        f"\n{count} times {kind} in {end / 3600:.1f} h; by nodes of the job: restarts"
        f" {[(job.checked.nodes, job.view.restarts) for job in jobs]}, moves"
        f" {[(job.checked.nodes, job.moves) for job in jobs]};"
        f" goodput {trained / whole:.1%}, lost {lost / whole:.1%}, the rest starts and waits"
    )
    phases = {job.view.phase for job in jobs}
    assert phases <= {"Running", "Starting", "Restarting"}
    assert all(job.view.restarts_towards_max == 0 for job in jobs)
    return cluster, trained / whole


def test_gangs_move_while_each_node_is_drained_in_turn() -> None:
    """Each gang moves after a checkpoint, so a drain costs the time of a start and no step."""
    cluster, goodput = maintained("drain", NODE_HOURS)
    assert cluster.evicted == 0
    assert all(job.view.restarts == 0 and job.lost == 0 for job in cluster.jobs.values())
    moves = {job.checked.nodes: job.moves for job in cluster.jobs.values()}
    assert moves[32] > 20 and moves[8] > 3
    assert goodput > 0.9


def test_no_job_fails_while_each_node_ends_in_turn() -> None:
    """Nodes that end without a warning cost the steps since the newest checkpoint, and no job."""
    cluster, goodput = maintained("end", NODE_HOURS // 2)
    restarts = {job.checked.nodes: job.view.restarts for job in cluster.jobs.values()}
    assert restarts[32] > 10 and restarts[16] > 3, "more often than maxRestarts"
    assert goodput > 0.7
