"""Every file calls the images by the same names and tags."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml

from llmtrain_core.images import (
    OPERATOR,
    OPERATOR_REPOSITORY,
    TRAINER,
    TRAINER_REPOSITORY,
    VERSION,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

REFERENCE = re.compile(r"(?<![\w.-])llmtrain/(?:operator|trainer)(?::[\w.-]*\w)?")
ELSEWHERE = ("tests/corpus/", "tests/images/", "tests/chart/")
"""Manifests about other fields, and tests of tags that a user chooses."""


def references() -> dict[str, set[str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = [name for name in listed.stdout.split("\0") if name]
    found = {}
    for name in names:
        path = ROOT / name
        if not name.startswith(ELSEWHERE) and path.is_file():
            found[name] = set(REFERENCE.findall(path.read_text("utf-8", errors="ignore")))
    return {name: images for name, images in found.items() if images}


def found_in(name: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / name).read_text("utf-8"), re.M)


def test_the_version_is_that_of_the_package_and_of_the_chart() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / "charts/llmtrain/Chart.yaml").read_text())
    assert {project["version"], chart["version"], chart["appVersion"]} == {VERSION}


def test_the_pages_are_about_this_version() -> None:
    assert found_in("CHANGELOG.md", r"^## (.+)$")[0] == VERSION
    assert found_in("docs/upgrade.md", r"^## To (.+)$")[0] == VERSION
    assert set(found_in("docs/install.md", r"llmtrain-([\d.]+)\.tgz")) == {VERSION}
    assert set(found_in("docs/images.md", r"/\$image:([\d.]+\d)")) == {VERSION}


def test_all_files_use_one_set_of_names_and_tags() -> None:
    allowed = {OPERATOR, TRAINER, OPERATOR_REPOSITORY, TRAINER_REPOSITORY}
    wrong = {name: images - allowed for name, images in references().items() if images - allowed}
    assert wrong == {}


@pytest.mark.parametrize("name", ["README.md", "examples/sotu-3d.yaml", "deploy/llmtrain.yaml"])
def test_files_that_a_user_applies_are_among_them(name: str) -> None:
    assert references()[name] <= {OPERATOR, TRAINER}


def test_the_chart_has_the_operator_as_its_default() -> None:
    values = yaml.safe_load((ROOT / "charts/llmtrain/values.yaml").read_text())
    assert values["image"]["repository"] == OPERATOR_REPOSITORY
    assert not values["image"]["tag"]
