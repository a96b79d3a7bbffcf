"""The chart's dashboards and rules are those of the code, and they are complete."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llmtrain_monitoring.dashboards import DASHBOARDS
from llmtrain_monitoring.panels import DashboardPage, PanelKind
from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.promql import metric_names
from llmtrain_monitoring.rules import ALERTS, RECORDINGS, RULES
from tests.support.exported_metrics import HARDWARE, exported_series
from tests.support.paths import ROOT

RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
EXPRESSIONS = {
    **{f"rule {getattr(rule, 'record', None) or rule.name}": rule.expr for rule in RULES},
    **{
        f"{page.title}: {panel.title} {number}": query.whole
        for page in DASHBOARDS
        for panel in page.panels
        for number, query in enumerate(panel.queries)
    },
}


def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in (FILES / "dashboards").glob("*.json")]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_files_are_those_that_the_code_writes() -> None:
    from llmtrain_monitoring.write import contents

    found = {
        str(path.relative_to(FILES)): path.read_text("utf-8")
        for folder in ("dashboards", "rules")
        for path in (FILES / folder).iterdir()
    }
    written = contents()
    assert sorted(found) == sorted(written)
    stale = [name for name, text in written.items() if found[name] != text]
    assert stale == [], "run `make monitoring`"


def test_a_panel_of_names_shows_only_present_series() -> None:
    named = [
        panel
        for board in boards()
        for panel in panels(board)
        if panel["type"] == "stat" and panel["options"]["textMode"] == "name"
    ]
    assert "Phase" in {panel["title"] for panel in named}
    assert all(target["instant"] for panel in named for target in panel["targets"])


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a, b) (rate(x_total{c="d"}[5m]))', {"x_total"}),
        ("a:b:c > 1.5 * quantile_over_time(0.5, a:b:c[6h] offset 10m)", {"a:b:c"}),
        ("x * on (n) group_left (rank) info or vector(0)", {"x", "info"}),
        ('label_replace(x, "to", "$1", "$level", "(.+)") unless y', {"x", "y"}),
        ("time() - max by (a) (z) > 1e3 and on() absent(w == bool 1)", {"z", "w"}),
        ("max by ($level) (x) / ignoring (group) group_left () y", {"x", "y"}),
    ],
)
def test_the_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_an_expression_uses_only_metrics_that_exist(place: str) -> None:
    used = metric_names(EXPRESSIONS[place])
    assert used and used - exported_series() == set()


def test_hardware_is_listed_only_if_an_expression_needs_it() -> None:
    used = frozenset().union(*map(metric_names, EXPRESSIONS.values()))
    assert set(HARDWARE) <= used


def test_every_recorded_series_is_used() -> None:
    """By an alert, a dashboard or another rule: a recording costs memory."""
    used = frozenset().union(*map(metric_names, EXPRESSIONS.values()))
    assert {rule.record for rule in RECORDINGS} <= used


def test_a_dashboard_has_the_classic_schema_and_a_data_source() -> None:
    assert len(boards()) == 4
    for board in boards():
        assert board["schemaVersion"] >= 42 and board["editable"] is False
        assert board["templating"]["list"][0]["type"] == "datasource"
        ids = [panel["id"] for panel in panels(board)]
        assert len(ids) == len(set(ids))


def test_a_panel_has_a_legend_a_unit_and_a_description() -> None:
    for board in boards():
        for panel in panels(board):
            where = f"{board['title']}: {panel['title']}"
            assert panel["type"] in list(PanelKind), where
            assert panel["options"].get("legend", {}).get("showLegend") is not False, where
            assert panel["fieldConfig"]["defaults"]["unit"], where
            assert len(panel["description"]) > 15 and panel["description"].endswith("."), where
            for target in panel["targets"]:
                assert target.get("legendFormat") or panel["type"] == "table", where


def test_panels_do_not_overlap_and_fill_their_rows() -> None:
    for board in boards():
        cells = set()
        for panel in panels(board):
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]
            mine = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & mine, panel["title"]
            cells |= mine


def test_titles_are_unique() -> None:
    for page in DASHBOARDS:
        titles = [panel.title for panel in page.panels]
        assert len(titles) == len(set(titles)), page.title


@pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.uid)
def test_a_dashboard_has_the_variables_that_its_expressions_use(page: DashboardPage) -> None:
    text = " ".join(
        f"{query.whole} {query.legend}" for panel in page.panels for query in panel.queries
    )
    text += " ".join(variable.query for variable in page.variables)
    used = set(re.findall(r"\$([a-z]\w*)", text))
    assert used == {variable.name for variable in page.variables}


def test_dashboards_of_jobs_select_namespace_and_job() -> None:
    names = {page.uid: [variable.name for variable in page.variables] for page in DASHBOARDS}
    for uid in ("llmtrain-training-job", "llmtrain-network"):
        assert names[uid][:2] == ["namespace", "llmtrain_job"]
    assert names["llmtrain-fleet"][0] == "namespace"


def test_alerts_and_pages_are_the_same() -> None:
    assert len(ALERTS) >= 18
    pages = {path.stem for path in RUNBOOKS.glob("LLMTrain*.md")}
    assert pages == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_happened_and_its_page_what_to_do(alert: Any) -> None:
    assert alert.summary.endswith(".") and alert.description.endswith(".")
    page = (RUNBOOKS / f"{alert.name}.md").read_text("utf-8")
    assert page.startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert f"`{alert.severity.value}`" in page
    assert "deploy/" not in page, "watchNamespaces changes the name; select by label"
    diagnosis = page.partition("## Diagnosis")[2].partition("## ")[0]
    assert re.search(r"^    \S", diagnosis, re.MULTILINE), "a command or a query"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_queries_of_a_page_use_only_metrics_that_exist(alert: Any) -> None:
    page = (RUNBOOKS / f"{alert.name}.md").read_text("utf-8")
    lines = re.findall(r"^    (.+)$", page, re.MULTILINE)
    queries = [line for line in lines if not line.startswith(("kubectl", "llmtrain ", "#"))]
    for query in queries:
        assert metric_names(query) - exported_series() == set(), query
