"""Pictures of the dashboards show faults by the name of what is at fault.

The pictures are written to the folder `LLMTRAIN_PICTURES`, or to `runs/pictures`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llmtrain_monitoring.dashboards import DASHBOARDS
from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.scrape import server_config
from llmtrain_monitoring.server import PrometheusServer
from llmtrain_pictures.chromium import Picture
from llmtrain_pictures.draw import draw
from tests.support.exported_metrics import HARDWARE
from tests.support.monitoring.live_cluster import INTERVAL, LiveCluster
from tests.support.monitoring.live_jobs import IDLE_HOST, RUN
from tests.support.monitoring.slow_rank import slow_rank
from tests.support.monitoring.slow_uplink import SLOW_RACK, exporter
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("live cluster"),
]

BOARDS = FILES / "dashboards"
FAULT_SECONDS, RECORDED_SECONDS = 40, 30
"""Time for several samples of the collectives, and for several scrapes."""


@pytest.fixture
def folder() -> Path:
    return Path(os.environ.get("LLMTRAIN_PICTURES") or ROOT / "runs" / "pictures")


def rank_of(live: LiveCluster, pod: str, gpu: int) -> dict[str, str]:
    (series,) = live.server.query(f'llmtrain_rank_info{{pod="{pod}",gpu="{gpu}"}}')
    labels: dict[str, str] = series["metric"]
    return labels


def problems(pictures: dict[str, Picture]) -> list[str]:
    """Return what pictures lack, but for what needs hardware."""
    return [
        problem
        for picture in pictures.values()
        for problem in picture.problems
        if not any(metric in problem for metric in HARDWARE)
    ]


def test_a_straggler_and_an_idle_gpu_in_a_real_job(live: LiveCluster, folder: Path) -> None:
    slow = rank_of(live, f"{RUN}-0-0", gpu=1)
    idle = rank_of(live, IDLE_HOST, gpu=1)
    with slow_rank(f"{RUN}-0-0", gpu=1):
        time.sleep(FAULT_SECONDS)
        pictures = draw(BOARDS, live.server.url, folder / "live", seconds=120)
    assert problems(pictures) == []
    assert len(pictures) == len(DASHBOARDS)
    assert f"{slow['node']} rank {slow['rank']}" in pictures["network"].text
    (worst,) = live.server.query("bottomk(1, llmtrain_straggler_score)")
    assert (worst["metric"]["pod"], worst["metric"]["gpu"]) == (f"{RUN}-0-0", "1")
    phase = pictures["training-job"].text.split("Phase")[1].split()[0]
    assert phase == "Running"
    bars = pictures["training-job"].text.split("Utilization of each GPU")[1].splitlines()
    assert bars[bars.index(f"{idle['node']} GPU 1") + 1] == "2%", bars


def test_a_slow_uplink_in_recorded_series(folder: Path, tmp_path: Path) -> None:
    rules = [str(BOARDS.parent / "rules" / "recording.yaml")]
    with exporter() as address:
        scrape = {
            "job_name": "recorded",
            "honor_labels": True,
            "static_configs": [{"targets": [address]}],
        }
        config = server_config([scrape], rules, INTERVAL)
        with PrometheusServer(tmp_path / "prometheus", config) as server:
            time.sleep(RECORDED_SECONDS)
            pictures = draw(BOARDS, server.url, folder / "slow-uplink", seconds=RECORDED_SECONDS)
            found = server.query(
                "min by (level_leaf) (llmtrain_leaf:collective_plan:ratio5m "
                "and on (namespace, llmtrain_job, group) llmtrain_job:group_leaves:max > 1)"
            )
    ratios = {each["metric"]["level_leaf"]: float(each["value"][1]) for each in found}
    slow = f"rack-{SLOW_RACK}"
    assert ratios.pop(slow) > 3
    assert max(ratios.values()) < 1.5 and len(ratios) == 3
    bars = pictures["network"].text.split("Congested uplinks")[1].splitlines()
    assert float(bars[bars.index(slow) + 1]) > 3
