"""Upgrade, uninstall and reinstall around a running job, whose pods do not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_kind.cluster import KindCluster
from tests.support.chart.releases import CRDS
from tests.support.kind.first_release import first_chart
from tests.support.kind.jobs import RESOURCE, Team
from tests.support.kind.release import KindRelease, inventory
from tests.support.kind.steps import becomes, step

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1500)]

LONG = 1_000_000
KEPT = {f"CustomResourceDefinition//{name}" for name in CRDS} | {
    "APIService//v1alpha1.llmtrain.dev"
}


def uids(team: Team) -> set[str]:
    return {pod["metadata"]["uid"] for pod in team.pods()}


def goes_on(team: Team, pods: set[str]) -> None:
    """Assert that a job makes progress in the same pods."""
    status = team.trains("steady", after=team.status("steady")["progress"]["step"])
    assert status.get("restarts", 0) == 0
    assert uids(team) == pods


def test_a_running_job_outlives_every_change_of_the_release(
    kind: KindCluster,
    before_install: set[str],
    release: KindRelease,
    team: Team,
    tmp_path: Path,
) -> None:
    def left() -> set[str]:
        """What there is beside the namespace of the job, and was not before the first install."""
        found = inventory(kind) - before_install
        return {item for item in found if team.namespace not in item.split("/")}

    with step("an uninstall without jobs leaves the definitions"):
        release.uninstall()
        becomes(left, KEPT)
    with step("install the first chart by Helm 3"):
        release.install(chart=first_chart(tmp_path), major=3)
    with step("a job trains"):
        team.submit("steady", LONG)
        team.phase("steady", "Running")
        pods = uids(team)
    with step("upgrade to the present chart by Helm 4"):
        release.upgrade()
        goes_on(team, pods)
    with step("the new operator leads and removes the finalizer of the first one"):
        becomes(lambda: team.job("steady")["metadata"].get("finalizers", []), [], seconds=180)
    with step("uninstall with the job running"):
        release.uninstall()
        assert uids(team) == pods
        assert {pod["status"]["phase"] for pod in team.pods()} == {"Running"}
        assert not team.job("steady")["metadata"].get("finalizers")
        becomes(left, KEPT)
    with step("install under another name"):
        release.install("--take-ownership", name="other")
        goes_on(team, pods)
    with step("uninstall and delete the job without an operator"):
        release.uninstall("other")
        team("delete", RESOURCE, "steady", "--timeout=60s")
        team("wait", "--for=delete", "pod", "--all", "--timeout=120s")
        becomes(left, KEPT)
    with step("install again for the tests after this one"):
        release.upgrade("--take-ownership")
