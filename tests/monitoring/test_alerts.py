"""Each alert fires on the series of its fault, alone, and is silent in a healthy cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_chart.helm import render
from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.prometheus import PROMTOOL
from llmtrain_monitoring.prometheus import find as find_tool
from llmtrain_monitoring.rules import ALERTS
from tests.support.alert_cases import CASES, AlertCase
from tests.support.chart.manifests import documents, find
from tests.support.recorded_series import HEALTHY, MINUTES, growing, of_operator, steady

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(1200)]
RULES = sorted((FILES / "rules").glob("*.yaml"))
FIRING = 'ALERTS{alertstate="firing"}'


@pytest.fixture(scope="module")
def promtool() -> Path:
    return find_tool(PROMTOOL)


def _expectation(expr: str, minutes: int, labels: list[dict[str, str]]) -> dict[str, Any]:
    """Return an expectation about the label sets of a result."""
    samples = [
        {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in each.items()) + "}", "value": 1}
        for each in labels
    ]
    return {"expr": expr, "eval_time": f"{minutes}m", "exp_samples": samples}


def _case_of(name: str, case: AlertCase) -> dict[str, Any]:
    """Return a test: the named alert fires, with those that have the same cause, and no other."""
    values = {**HEALTHY, **case.changed}
    minutes = case.samples * MINUTES
    firing = [{"alertname": each} for each in (name, *case.others) if each]
    expectations = [_expectation(f"group by (alertname) ({FIRING})", minutes, firing)]
    if case.labels:
        by = f"group by ({', '.join(case.labels)})"
        alert = f'ALERTS{{alertname="{name}",alertstate="firing"}}'
        expectations.append(_expectation(f"{by} ({alert})", minutes, [case.labels]))
    return {
        "name": name or "healthy",
        "interval": f"{MINUTES}m",
        "input_series": [{"series": key, "values": text} for key, text in values.items()],
        "promql_expr_test": expectations,
    }


def _run(
    promtool: Path, folder: Path, tests: list[dict[str, Any]], files: Sequence[Path] = RULES
) -> tuple[int, str]:
    file = folder / "tests.yaml"
    rules = {"rule_files": [str(path) for path in files], "evaluation_interval": f"{MINUTES}m"}
    file.write_text(yaml.safe_dump({**rules, "tests": tests}))
    done = subprocess.run(
        [promtool, "test", "rules", file], capture_output=True, text=True, timeout=1000
    )
    return done.returncode, done.stdout + done.stderr


def test_the_rules_have_no_fault(promtool: Path) -> None:
    command = [promtool, "check", "rules", "--lint=all", "--lint-fatal", *RULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_in_a_healthy_cluster(promtool: Path, tmp_path: Path) -> None:
    code, report = _run(promtool, tmp_path, [_case_of("", AlertCase({}))])
    assert code == 0, report


def test_every_alert_has_a_case() -> None:
    assert sorted(CASES) == sorted(alert.name for alert in ALERTS)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_on_its_fault_and_names_the_culprit(
    name: str, promtool: Path, tmp_path: Path
) -> None:
    code, report = _run(promtool, tmp_path, [_case_of(name, CASES[name])])
    assert code == 0, report


def test_the_operator_of_one_namespace_is_down(promtool: Path, tmp_path: Path) -> None:
    of_team = {"watch_namespace": "team-a"}
    leader = of_operator("llmtrain_operator_leader", pod="a", **of_team)
    case = AlertCase({leader: steady(0)}, of_team)
    code, report = _run(promtool, tmp_path, [_case_of("LLMTrainOperatorDown", case)])
    assert code == 0, report


@pytest.mark.parametrize("missing", ["team-a", "team-b"])
def test_the_operator_of_a_watched_namespace_is_gone(
    missing: str, promtool: Path, tmp_path: Path
) -> None:
    values = {"watchNamespaces": ["team-a", "team-b"], "prometheusRule": {"enabled": True}}
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(find(documents(render(values)), "PrometheusRule")["spec"]))
    leader = "llmtrain_operator_leader"
    of_a, of_b = (of_operator(leader, pod=x, watch_namespace=f"team-{x}") for x in "ab")
    both = {of_operator(leader): "_x120", of_a: steady(1), of_b: steady(1)}
    gone = both | {of_a if missing == "team-a" else of_b: "_x120"}
    down = _case_of("LLMTrainOperatorDown", AlertCase(gone, {"watch_namespace": missing}))
    code, report = _run(promtool, tmp_path, [_case_of("", AlertCase(both)), down], [rules])
    assert code == 0, report


def test_repeated_training_is_no_goodput(promtool: Path, tmp_path: Path) -> None:
    repeated = of_operator("llmtrain_operator_gpu_seconds_total", state="lost")
    case = AlertCase({repeated: growing(480)})
    code, report = _run(promtool, tmp_path, [_case_of("LLMTrainGoodputLow", case)])
    assert code == 0, report


def test_a_wrong_expectation_is_reported(promtool: Path, tmp_path: Path) -> None:
    code, report = _run(promtool, tmp_path, [_case_of("LLMTrainStraggler", AlertCase({}))])
    assert code == 1 and "LLMTrainStraggler" in report
