"""Every import contract of pyproject.toml refuses an import in a file that did not exist before."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "operator", "trainer", "cli", "hack")
CORE, OPERATOR = "core/llmtrain_core", "operator/llmtrain_operator"
TRAINER, CLI = "trainer/llmtrain_trainer", "cli/llmtrain_cli"
DEVCLUSTER, MONITORING = "hack/llmtrain_devcluster", "hack/llmtrain_monitoring"
CHART, IMAGES = "hack/llmtrain_chart", "hack/llmtrain_images"
KIND = "hack/llmtrain_kind"
PICTURES = "hack/llmtrain_pictures"
IO_MODULES = [
    "aiohttp",
    "asyncio",
    "http.client",
    "multiprocessing",
    "numpy",
    "os",
    "pathlib",
    "requests",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "torch",
    "urllib.request",
]

PLANTED: dict[str, list[tuple[str, str]]] = {
    "packages: layers": [
        (f"{CORE}/placement", "llmtrain_cli.errors"),
        (f"{CORE}/plan", "llmtrain_operator.errors"),
        (f"{OPERATOR}/kube", "llmtrain_trainer.errors"),
        (f"{OPERATOR}/cache", "llmtrain_cli.errors"),
        (f"{OPERATOR}/planning", "llmtrain_devcluster.paths"),
        (f"{TRAINER}/runtime", "llmtrain_operator.errors"),
        (f"{TRAINER}/training", "llmtrain_devcluster.paths"),
        (f"{DEVCLUSTER}/kubelet", "llmtrain_operator.errors"),
        (f"{DEVCLUSTER}/process_node", "llmtrain_trainer.errors"),
        (f"{DEVCLUSTER}/process_node", "llmtrain_monitoring.panels"),
        (f"{OPERATOR}/manifests", "llmtrain_chart.helm"),
    ],
    "cli: no import of the operator": [(f"{CLI}/run", "llmtrain_operator.errors")],
    "only `llmtrain cluster` and the tools that build something import the devcluster": [
        (f"{CLI}/commands", "llmtrain_devcluster.detached"),
        (f"{CLI}/io", "llmtrain_devcluster.paths"),
        (f"{TRAINER}/model", "llmtrain_devcluster.paths"),
        (f"{MONITORING}/rules", "llmtrain_devcluster.paths"),
    ],
    "no package has an import cycle between its children": [
        (f"{CLI}/io", "llmtrain_cli.io.planted_after"),
        (f"{DEVCLUSTER}/kubelet", "llmtrain_devcluster.kubelet.planted_after"),
    ],
    "core: layers": [(f"{CORE}/api", "llmtrain_core.placement")],
    "operator: layers": [(f"{OPERATOR}/manifests", "llmtrain_operator.reconcile")],
    "trainer: layers": [(f"{TRAINER}/model", "llmtrain_trainer.training")],
    "cli: layers": [
        (f"{CLI}/io", "llmtrain_cli.commands.place"),
        (f"{CLI}/plan", "llmtrain_cli.run.plot"),
    ],
    "devcluster: layers": [(f"{DEVCLUSTER}/control_plane", "llmtrain_devcluster.process_node")],
    "monitoring: layers": [(f"{MONITORING}/rules", "llmtrain_monitoring.grafana")],
    "pictures: layers": [(PICTURES, "llmtrain_pictures.draw")],
    "images: layers": [(IMAGES, "llmtrain_images.fixtures")],
    "kind: layers": [(KIND, "llmtrain_kind.cluster")],
    "chart: layers": [(f"{CHART}/values", "llmtrain_chart.schema")],
    "core: external packages": [
        (f"{CORE}/{folder}", module) for folder in ("plan", "queueing") for module in IO_MODULES
    ],
    "operator: external packages": [
        (f"{OPERATOR}/planning", "torch"),
        (f"{OPERATOR}/policies", "numpy"),
    ],
    "trainer: external packages": [(f"{TRAINER}/training", "kopf"), (f"{TRAINER}/data", "aiohttp")],
    "cli: external packages": [(f"{CLI}/commands", "torch"), (f"{CLI}/io", "kubernetes")],
    "devcluster: external packages": [(f"{DEVCLUSTER}/demo", "kubernetes")],
    "monitoring: external packages": [(f"{MONITORING}/dashboards", "aiohttp")],
    "pictures: external packages": [(PICTURES, "requests")],
    "images: external packages": [(IMAGES, "docker")],
    "kind: external packages": [(KIND, "docker")],
    "chart: external packages": [(f"{CHART}/values", "kubernetes")],
    "only handlers.py and kopf_workarounds.py import kopf": [
        (f"{OPERATOR}/planning", "kopf"),
        (f"{OPERATOR}/reconcile", "kopf"),
        (f"{DEVCLUSTER}/demo", "kopf"),
    ],
    "only kube imports kubernetes": [
        (f"{OPERATOR}/progress", "kubernetes"),
        (f"{OPERATOR}/scheduler", "kubernetes.client"),
    ],
}


def lint(tree: Path) -> str:
    """Return the report of lint-imports about a copy of the sources."""
    path = os.pathsep.join(str(tree / source) for source in SOURCES)
    done = subprocess.run(
        [Path(sys.prefix) / "bin" / "lint-imports", "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for source in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, copy / source, ignore=ignored)
    return copy


def plant(folder: Path, module: str, number: int) -> str:
    """Write a module with one import and return the module's name."""
    name = f"planted_{number:03}"
    (folder / f"{name}.py").write_text(f"import {module}\n")
    parts = folder.parts[
        next(i for i, part in enumerate(folder.parts) if part[:9] == "llmtrain_") :
    ]
    full = ".".join([*parts, name])
    if module.endswith(".planted_after"):
        (folder / "planted_after.py").write_text(f"import {full}\n")
    return full


def test_each_contract_refuses_a_planted_import(tree: Path) -> None:
    config = tomllib.loads((tree / "pyproject.toml").read_text())
    contracts = [each["name"] for each in config["tool"]["importlinter"]["contracts"]]
    assert sorted(contracts) == sorted(PLANTED), "every contract needs an import that it refuses"
    clean = lint(tree)
    assert [name for name in contracts if f"{name} KEPT" not in clean] == []
    planted = [
        (contract, plant(tree / folder, module, number), module)
        for number, (contract, folder, module) in enumerate(
            (name, *each) for name, imports in PLANTED.items() for each in imports
        )
    ]
    report = lint(tree)
    assert [name for name in contracts if f"{name} BROKEN" not in report] == []
    _, _, details = report.partition("Broken contracts")
    sections = re.split(r"^(.+)\n-+\n", details, flags=re.MULTILINE)
    findings = dict(zip(sections[1::2], sections[2::2], strict=True))
    missed = [
        f"{contract}: {importer} -> {module}"
        for contract, importer, module in planted
        if importer.rpartition(".")[2] not in findings[contract]
    ]
    assert missed == [], details
