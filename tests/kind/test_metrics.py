"""Prometheus finds operator and pods as the monitors of the chart say."""

from __future__ import annotations

import pytest

from llmtrain_kind.cluster import WORKERS, KindCluster
from llmtrain_monitoring.scrape import scrape_config
from tests.support.kind.jobs import Team
from tests.support.kind.prometheus import deploy, undeploy
from tests.support.kind.release import KindRelease
from tests.support.kind.steps import step

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1600)]

LONG = 1_000_000
MONITORS = "servicemonitors.monitoring.coreos.com,podmonitors.monitoring.coreos.com"


def test_the_monitors_find_operator_and_pods(
    kind: KindCluster, release: KindRelease, team: Team, prometheus_image: str
) -> None:
    with step("start Prometheus with the monitors of the release"):
        monitors = kind.kubectl.get(MONITORS, "--all-namespaces")["items"]
        assert {monitor["kind"] for monitor in monitors} == {"ServiceMonitor", "PodMonitor"}
        configs = [scrape_config(monitor) for monitor in monitors]
        prometheus = deploy(kind.kubectl, prometheus_image, configs)
    try:
        with step("a job trains"):
            team.submit("measured", LONG)
            team.trains("measured")
        with step("every target is up"):
            found = prometheus.wait_for("up == 1", lambda found: len(found) == 3)
            assert {f["metric"].get("node") for f in found} == {None, *WORKERS}
            assert prometheus.query("up == 0") == []
        with step("series of the job have its labels"):
            (loss,) = prometheus.wait_for("llmtrain_loss")
            assert loss["metric"]["llmtrain_job"] == "measured"
            assert loss["metric"]["namespace"] == team.namespace
            assert loss["metric"]["attempt"] == "0"
        with step("series of the operator have the namespace of the job"):
            name = f'{{__name__=~"llmtrain_operator_.*",job_name="",namespace="{team.namespace}"}}'
            assert prometheus.wait_for(name)
    finally:
        undeploy(kind.kubectl)
