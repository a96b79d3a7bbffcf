"""Links between the pages resolve, and what they say about the chart and `make` exists."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain_chart.helm import run_helm
from llmtrain_chart.paths import CHART
from llmtrain_devcluster.control_plane.build import KUBERNETES_VERSION
from tests.support.paths import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), CHART / "README.md"],
    key=lambda page: str(page.relative_to(ROOT)),
)
OF_THE_CHART = ("config", "crds", "dashboards", "global", "image", "networkPolicy", "podMonitor")
OF_THE_CHART += ("prometheusRule", "rbac", "serviceMonitor", "podDisruptionBudget")
OF_THE_CHART += ("priorityClass", "serviceAccount", "metricsService", "podSecurityContext")
"""Values that are maps. Other fields of these names are listed in `OTHERS`."""
OTHERS = {"config.json", "config.toml"}
LINK = re.compile(r"(?<!!)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
ASSIGNED = re.compile(r"--set(?:-string)? +'?([\w.]+)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    lines = FENCE.sub("", page.read_text("utf-8")).splitlines()
    return "\n".join(line for line in lines if not line.startswith("    "))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = []
    for heading in re.findall(r"^#+ +(.+?) *$", page.read_text("utf-8"), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        names.append(f"{slug}-{number}" if number else slug)
    return frozenset(names)


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        known = anchors(file) if file.suffix == ".md" and file.exists() else frozenset()
        if not file.exists() or (anchor and anchor not in known):
            yield target


@cache
def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return found


def is_value(path: str) -> bool:
    """Whether a value exists. Below a free map every name does."""
    node: Any = values()
    for part in path.split("."):
        if node == {}:
            return True
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def wrong_values(page: Path) -> Iterator[str]:
    text = page.read_text("utf-8")
    for code in CODE.findall(text):
        found = re.match(rf"((?:{'|'.join(OF_THE_CHART)})\.[\w.]+)", code)
        if found and found[1] not in OTHERS and not is_value(found[1].rstrip(".")):
            yield code
    yield from (path for path in ASSIGNED.findall(text) if not is_value(path))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_resolves(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_value_of_the_chart_exists(page: Path) -> None:
    assert list(wrong_values(page)) == []


def test_the_installation_names_values_in_its_table() -> None:
    """The table has values without a dot, too."""
    table = (ROOT / "docs" / "install.md").read_text("utf-8").partition("## Values")[2]
    rows = re.findall(r"^\| [^|]+ \| (.+) \|$", table.partition("\n## ")[0], re.M)
    codes = [code for row in rows[2:] for code in CODE.findall(row)]
    assert len(codes) > 10
    assert [c for c in codes if not is_value(re.split(r"[:=]", c)[0])] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    used = set(re.findall(r"(?:^ {4,}|`)make ([a-z-]+)", page.read_text("utf-8"), re.M))
    assert used - targets == set()


def test_the_support_matrix_names_the_versions_that_run() -> None:
    rows = re.findall(
        r"^\| ([\w ,]+) \| ([^|]*) \|", (ROOT / "docs" / "support.md").read_text("utf-8"), re.M
    )
    tested = dict(rows)
    printed = [run_helm(["version", "--short"], major) for major in (4, 3)]
    helm = [found[0] for found in map(re.compile(r"\d+\.\d+").search, printed) if found]
    lock = (ROOT / "requirements" / "trainer.txt").read_text("utf-8")
    assert tested["Kubernetes"] == KUBERNETES_VERSION.rpartition(".")[0]
    assert tested["Helm"].startswith(" and ".join(helm))
    assert tested["Python of operator, trainer and command line"] == ".".join(
        map(str, sys.version_info[:2])
    )
    assert f"torch=={tested['torch']}." in lock


def test_every_page_is_linked() -> None:
    """A reader who starts at the README, the contribution guide or the runbooks finds all pages."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(prose(page))
    }
    pages = [page for page in PAGES if page.parent != ROOT and page.parent.name != "llmtrain"]
    assert [named(page) for page in pages if page not in linked] == []


def test_faults_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`\n\n[a](#one-two) [b](#three) [c](missing.md)\n"
        "`config.progressSeconds`, `config.progress`, `crds.install: true`\n\n"
        "    helm upgrade --set replicas=2 --set replica=3 --set commonLabels.a=b\n"
    )
    assert list(broken_links(page)) == ["#three", "missing.md"]
    assert list(wrong_values(page)) == ["config.progress", "replica"]
