"""The packages of the page that draws dashboards: exact, from any registry, and freely licensed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

WEB = ROOT / "hack" / "llmtrain_pictures" / "web"
COPYLEFT = re.compile(r"\bA?GPL|SSPL|BUSL")


def packages() -> dict[str, dict[str, Any]]:
    """Return all locked packages by their path."""
    lock = json.loads((WEB / "package-lock.json").read_text("utf-8"))
    found: dict[str, dict[str, Any]] = lock["packages"]
    return {path: package for path, package in found.items() if path}


def test_versions_are_exact() -> None:
    wanted = json.loads((WEB / "package.json").read_text("utf-8"))["dependencies"]
    locked = packages()
    for name, version in wanted.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
        assert locked[f"node_modules/{name}"]["version"] == version


def test_packages_have_hashes_and_no_addresses() -> None:
    for path, package in packages().items():
        assert package["integrity"].startswith("sha512-"), path
        assert "resolved" not in package, path


def test_no_package_has_a_copyleft_license() -> None:
    found = packages()
    assert len(found) > 100
    assert "node_modules/@grafana/prometheus" not in found
    licenses = {path: package.get("license", "") for path, package in found.items()}
    assert {path: text for path, text in licenses.items() if COPYLEFT.search(text)} == {}
