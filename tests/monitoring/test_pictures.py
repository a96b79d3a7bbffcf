"""A picture of recorded series shows a slow uplink by its name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.scrape import server_config
from llmtrain_monitoring.server import PrometheusServer
from tests.support.monitoring.live_cluster import INTERVAL
from tests.support.monitoring.pictures import after, pictures
from tests.support.monitoring.slow_uplink import SLOW_RACK, exporter

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(600)]

RECORDED_SECONDS = 30


def test_a_slow_uplink_in_recorded_series(tmp_path: Path) -> None:
    rules = [str(FILES / "rules" / "recording.yaml")]
    with exporter() as address:
        scrape = {
            "job_name": "recorded",
            "honor_labels": True,
            "static_configs": [{"targets": [address]}],
        }
        config = server_config([scrape], rules, INTERVAL)
        with PrometheusServer(tmp_path / "prometheus", config) as server:
            time.sleep(RECORDED_SECONDS)
            drawn = pictures("slow-uplink", server.url, RECORDED_SECONDS)
            found = server.query(
                "min by (level_leaf) (llmtrain_leaf:collective_plan:ratio5m "
                "and on (namespace, llmtrain_job, group) llmtrain_job:group_leaves:max > 1)"
            )
    ratios = {each["metric"]["level_leaf"]: float(each["value"][1]) for each in found}
    slow = f"rack-{SLOW_RACK}"
    assert ratios.pop(slow) > 3
    assert max(ratios.values()) < 1.5 and len(ratios) == 3
    assert float(after(drawn["network"].text, "Congested uplinks", slow)) > 3
