"""Every query of dashboards and rules returns data from a real job and a real operator."""

from __future__ import annotations

import time

import pytest

from llmtrain_monitoring.dashboards import DASHBOARDS
from tests.support.exported_metrics import HARDWARE
from tests.support.monitoring.expressions import Expression, expressions, observed
from tests.support.monitoring.live_cluster import LiveCluster
from tests.support.monitoring.live_jobs import FAILING, IDLE_HOST, NAMESPACE, RUN
from tests.support.monitoring.pictures import after, pictures, problems
from tests.support.monitoring.slow_rank import slow_rank

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.timeout(900),
]

DATA_SECONDS = 60.0
FAULT_SECONDS = 40
"""Time for several samples of the collectives."""


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        ("a > 1", "a > bool 1"),
        ("max(a) < on (b) c", "max(a) < bool on (b) c"),
        ('a{b=~"c"} == 1 unless d offset 1h >= 3', 'a{b=~"c"} == bool 1 and d offset 2s >= bool 3'),
        ("absent(a == 1)", "(a == bool 1)"),
    ],
)
def test_what_an_alert_observes(alert: str, expected: str) -> None:
    assert observed(alert) == expected


def test_targets_have_the_labels_that_rules_rely_on(live: LiveCluster) -> None:
    targets = live.server.ask("targets", state="active")["activeTargets"]
    assert {target["health"] for target in targets} == {"up"}, targets
    found = {target["labels"]["pod"]: target["labels"] for target in targets}
    pods = {name: labels for name, labels in found.items() if labels.get("llmtrain_job") == RUN}
    assert sorted(pods) == [f"{RUN}-0-0", f"{RUN}-0-1"]
    racks = set()
    for name, labels in pods.items():
        assert labels["namespace"] == NAMESPACE and labels["attempt"] == "0", name
        assert labels["node"] == f"{labels['level_leaf']}-1"
        assert labels["level_spine"] == "spine-1"
        racks.add(labels["level_leaf"])
    assert len(racks) == 2
    (phase,) = live.server.query(f'llmtrain_operator_job_phase{{job="{RUN}"}}')
    assert phase["metric"]["namespace"] == NAMESPACE, "the job's own, kept by honor_labels"


def test_every_query_returns_data_or_needs_listed_hardware(live: LiveCluster) -> None:
    missing = _without_data(live, [each for each in expressions() if not each.hardware])
    assert missing == []


def test_listed_hardware_is_really_missing(live: LiveCluster) -> None:
    """The list must not excuse what a test can show."""
    present = [metric for metric in HARDWARE if live.server.query(metric)]
    answered = [each.where for each in expressions() if each.hardware and _has_data(live, each)]
    assert (present, answered) == ([], [])


def test_only_the_job_that_failed_fires_an_alert(live: LiveCluster) -> None:
    firing = live.server.query('ALERTS{alertstate="firing"}')
    found = {(each["metric"]["alertname"], each["metric"]["job"]) for each in firing}
    assert found == {("LLMTrainJobFailed", FAILING)}


def test_waits_are_a_part_of_the_collectives(live: LiveCluster) -> None:
    for series in live.server.query("llmtrain_job:collective_wait:ratio5m"):
        assert 0 <= float(series["value"][1]) <= 1, series


def test_pictures_show_a_straggler_and_an_idle_gpu_by_name(live: LiveCluster) -> None:
    slow, idle = _rank(live, f"{RUN}-0-0"), _rank(live, IDLE_HOST)
    with slow_rank(slow["instance"], gpu=1):
        time.sleep(FAULT_SECONDS)
        drawn = pictures("live", live.server.url, seconds=120)
    assert problems(drawn) == []
    assert len(drawn) == len(DASHBOARDS)
    assert f"{slow['node']} rank {slow['rank']}" in drawn["network"].text
    (worst,) = live.server.query("bottomk(1, llmtrain_straggler_score)")
    assert (worst["metric"]["pod"], worst["metric"]["gpu"]) == (slow["pod"], "1")
    job = drawn["training-job"].text
    assert after(job, "Utilization of each GPU", f"{idle['node']} GPU 1") == "2%"
    assert job.split("Phase")[1].split()[0] == "Running"


def _rank(live: LiveCluster, pod: str) -> dict[str, str]:
    """Return the labels of the rank on the second GPU of a pod."""
    (series,) = live.server.query(f'llmtrain_rank_info{{pod="{pod}",gpu="1"}}')
    labels: dict[str, str] = series["metric"]
    return labels


def _has_data(live: LiveCluster, expression: Expression) -> bool:
    return bool(live.server.query(expression.text))


def _without_data(live: LiveCluster, wanted: list[Expression]) -> list[str]:
    """Return queries that have no data for a while, with their text."""
    deadline = time.monotonic() + DATA_SECONDS
    while missing := [each for each in wanted if not _has_data(live, each)]:
        if time.monotonic() > deadline:
            break
        time.sleep(1)
        wanted = missing
    return [f"{each.where}: {each.text}" for each in missing]
