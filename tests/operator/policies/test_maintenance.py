"""Rolling maintenance: a drain every ten minutes. Pure: the decisions are real, the cluster is not.

Each drain evicts a pod of most gangs sooner or later. That costs the steps since the newest
checkpoint and the time of a start, and no job.
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.operator_harness.maintenance import MaintainedCluster

pytestmark = pytest.mark.unit

NODES, NODE_HOURS = 64, 2000
DRAIN_SECONDS, CHECKPOINT_SECONDS = 600.0, 300.0
GANGS = (32, 16, 8, 4)


def test_no_job_fails_while_each_node_is_drained_in_turn() -> None:
    cluster = MaintainedCluster(NODES, GANGS, CHECKPOINT_SECONDS)
    end = NODE_HOURS / NODES * 3600
    drains = int(end / DRAIN_SECONDS)
    for number in range(1, drains + 1):
        cluster.after(number * DRAIN_SECONDS, partial(cluster.drain, f"n{number % NODES}"))
    cluster.run(end)
    views = {job.checked.nodes: job.view for job in cluster.jobs.values()}
    trained = sum(job.saved * job.checked.nodes for job in cluster.jobs.values())
    lost = sum(job.lost * job.checked.nodes for job in cluster.jobs.values())
    whole = sum(GANGS) * end
    restarts = {nodes: view.restarts for nodes, view in views.items()}
    print(
        f"\n{drains} drains in {end / 3600:.1f} h; restarts by nodes of the job: {restarts};"
        f" goodput {trained / whole:.1%}, lost {lost / whole:.1%}, the rest starts and waits"
    )
    assert all(view.phase in ("Running", "Starting", "Restarting") for view in views.values())
    assert restarts[32] > 20 and restarts[8] > 3, "drains hit the jobs more often than maxRestarts"
    assert all(view.restarts_towards_max == 0 for view in views.values())
    assert trained / whole > 0.7
