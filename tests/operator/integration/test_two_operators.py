"""Two operators of one namespace each share nodes: no gang is torn for ever, and none fails."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess, status_of

pytestmark = pytest.mark.cluster

NODES = 8


@pytest.fixture
async def teams(
    installed: ControlPlane,
    api: Api,
    namespace: str,
    scripted_nodes: ScriptedNodes,
    tmp_path: Path,
) -> AsyncIterator[list[OperatorHarness]]:
    """Two namespaces, each with an operator of its own, whose jobs select the same nodes."""
    tag, names = secrets.token_hex(3), (namespace, f"{namespace}-2")
    await api.create("namespaces", {"metadata": {"name": names[1]}})
    await api.wait_for("serviceaccounts", "default", lambda found: found is not None, names[1])
    found = [OperatorHarness(api, name, scripted_nodes, tag) for name in names]
    operators = []
    for name in names:
        (tmp_path / name).mkdir()
        # The roles of the shipped manifest permit the lease of one operator only.
        flag = f"--namespace={name}"
        operators.append(OperatorProcess(installed, tmp_path / name, flag, user="admin"))
        operators[-1].spawn()
    for operator in operators:
        await asyncio.to_thread(operator.await_lead)
    yield found
    for operator in operators:
        operator.stop()
    for harness in found:
        await harness.clear()
    await api.delete("namespaces", names[1])


async def test_gangs_of_two_operators_get_the_same_nodes_in_turn(
    teams: list[OperatorHarness],
) -> None:
    nodes = teams[0].nodes
    nodes.default = PodScript(exit_after=1.0)
    await teams[0].add_nodes(*({} for _ in range(NODES)))
    whole = {"workers": {"nodes": NODES}}
    jobs = [(team, f"job-{number}") for number in range(2) for team in teams]
    # All at the same moment: each gang needs all nodes, and none can wait for another's status.
    await asyncio.gather(*(team.submit(name, **whole) for team, name in jobs))
    for team, name in jobs:
        status = status_of(await team.phase(name, "Succeeded", "Failed", seconds=300))
        assert status["phase"] == "Succeeded" and status["restarts"] == 0
        assert not status.get("failures")
