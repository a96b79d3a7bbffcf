"""From `helm install` to a finished job, and back to an empty namespace."""

from __future__ import annotations

import pytest

from llmtrain_kind.cluster import KindCluster
from tests.support.kind.jobs import RESOURCE, Team
from tests.support.kind.release import KindRelease, inventory
from tests.support.kind.steps import becomes, step

pytestmark = [pytest.mark.kind, pytest.mark.timeout(2000)]

STEPS = 30


def columns(team: Team, name: str) -> dict[str, str]:
    """Return what `kubectl get` shows of a job."""
    header, row = team("get", RESOURCE, name, "--output=wide").splitlines()
    starts = [i for i, c in enumerate(header) if c != " " and (i == 0 or header[i - 1] == " ")]
    ends = [*starts[1:], len(header) + len(row)]
    return {header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}


def test_a_job_runs_to_its_end(kind: KindCluster, release: KindRelease, team: Team) -> None:
    with step("helm test"):
        assert "Succeeded" in release.helm("test", "llmtrain", "--timeout=120s")
    before = inventory(kind)

    with step("submit a job of two nodes"):
        team.submit("first", STEPS)
        team.phase("first", "Running", seconds=300)
        nodes = {pod["spec"]["nodeName"] for pod in team.pods()}
        assert len(nodes) == 2
        containers = [pod["spec"]["containers"][0] for pod in team.pods()]
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in containers)
    with step("it succeeds"):
        status = team.phase("first", "Succeeded", seconds=600)
        assert status.get("restarts", 0) == 0
        assert status["progress"]["step"] == STEPS
        assert status["progress"]["loss"] < 6
    with step("all columns are filled"):
        shown = columns(team, "first")
        empty = {name for name, value in shown.items() if value in ("", "<none>")}
        assert empty <= {"ETA"}, shown
        assert shown["STATE"] == "Succeeded" and shown["PROGRESS"] == "100%", shown
        assert shown["NODES"] == "2/2", shown
    with step("the operator sees the counters of the collectives"):
        groups = {entry["group"] for entry in status["progress"].get("collectives", ())}
        assert "dp" in groups, status["progress"]
    with step("delete it"):
        team.delete("first")
        team("delete", "configmap", "corpus")
        team("wait", "--for=delete", "pod", "--all", "--timeout=120s")
        becomes(lambda: inventory(kind) - before, set())
