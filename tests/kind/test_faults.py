"""A rank dies, a node dies and comes back."""

from __future__ import annotations

import time

import pytest

from llmtrain_kind.cluster import WORKERS, KindCluster
from tests.support.kind.jobs import Team
from tests.support.kind.release import SYSTEM, KindRelease
from tests.support.kind.steps import step

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1500)]

LONG = 1_000_000
KILL_A_RANK = """
import os, signal
from pathlib import Path
for stat in Path("/proc").glob("[0-9]*/stat"):
    pid, parent = stat.parent.name, stat.read_text().rpartition(")")[2].split()[1]
    if parent == "1" and int(pid) != os.getpid():
        os.kill(int(pid), signal.SIGKILL)
        print(f"killed {pid}")
        break
else:
    raise SystemExit("no rank")
"""


def test_a_killed_rank_restarts_in_its_pod(
    kind: KindCluster, release: KindRelease, team: Team
) -> None:
    with step("a job trains"):
        team.submit("in-place", LONG)
        team.trains("in-place")
        pods = {pod["metadata"]["uid"] for pod in team.pods()}
    with step("kill a rank"):
        assert "killed" in team("exec", "in-place-0-1", "--", "python", "-c", KILL_A_RANK)
    with step("the ranks restart in their pods"):
        status = team.wait(
            "in-place",
            lambda s: s.get("progress", {}).get("restartsInPlace") == 1,
            "restarted in place",
        )
        assert status.get("restarts", 0) == 0
        team.trains("in-place", after=3)
        assert pods == {pod["metadata"]["uid"] for pod in team.pods()}


def test_a_dead_node_is_not_used_until_it_is_back(
    kind: KindCluster, release: KindRelease, team: Team
) -> None:
    label = "app.kubernetes.io/component=operator"
    (operator,) = kind.kubectl.get("pods", "-n", SYSTEM, "--selector", label)["items"]
    (dead,) = set(WORKERS) - {operator["spec"]["nodeName"]}
    with step("a job trains"):
        team.submit("survivor", LONG)
        team.trains("survivor")
    with step(f"kill {dead}"):
        kind.stop_node(dead)
    try:
        with step("the job waits for a node"):
            status = team.phase("survivor", "Queued", seconds=300)
            (failure,) = status["failures"]
            assert (failure["reason"], failure["node"]) == ("NodeLost", dead)
            assert status["attempt"] == 1 and status["restarts"] == 1
            time.sleep(5)
            assert team.status("survivor")["phase"] == "Queued"
            assert team.pods("llmtrain.dev/attempt=1") == []
    finally:
        with step(f"start {dead}"):
            kind.start_node(dead)
    with step("the job trains again"):
        kind.kubectl("wait", "--for=condition=Ready", f"node/{dead}", "--timeout=180s")
        team.trains("survivor", attempt=1, seconds=300)
        step_now = team.status("survivor")["progress"]["step"]
        status = team.trains("survivor", attempt=1, after=step_now)
        assert status["restarts"] == 1 and len(status["failures"]) == 1
        assert {pod["spec"]["nodeName"] for pod in team.pods("llmtrain.dev/attempt=1")} == {
            *WORKERS
        }
