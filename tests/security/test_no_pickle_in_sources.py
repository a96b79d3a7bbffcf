"""The sources of the trainer and of the command line read no pickles and run no text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "__import__"}
OBJECTS = ("_object", "_object_list")
"""Ends of the names of torch's collectives of pickles."""

ALLOWED = {
    ("checkpoint/corruption.py", "imports pickle"),  # the class of torch's error
}


def _findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {each.name}" for each in node.names if each.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    text = ast.unparse(node.func)
    options = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if text in CALLS or (text.startswith("dist.") and text.endswith(OBJECTS)):
        yield f"calls {text}"
    if text == "torch.load" and options.get("weights_only") != "True":
        yield "calls torch.load without weights_only"
    if text in ("np.load", "numpy.load") and "allow_pickle" in options:
        yield "reads pickles with numpy"


def _sources() -> Iterator[tuple[str, Path]]:
    for package in (ROOT / "trainer/llmtrain_trainer", ROOT / "cli/llmtrain_cli"):
        for path in sorted(package.rglob("*.py")):
            yield path.relative_to(package).as_posix(), path


def test_nothing_reads_a_pickle_or_runs_text() -> None:
    found = {
        (name, finding)
        for name, path in _sources()
        for finding in _findings(ast.parse(path.read_text()))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("dist.all_gather_object(a, b)", "calls dist.all_gather_object"),
        ("dist.broadcast_object_list(a)", "calls dist.broadcast_object_list"),
        ("torch.load(x)", "calls torch.load without weights_only"),
        ("torch.load(x, weights_only=False)", "calls torch.load without weights_only"),
        ("np.load(x, allow_pickle=True)", "reads pickles with numpy"),
        ("eval(x)", "calls eval"),
    ],
)
def test_each_of_them_is_found(source: str, finding: str) -> None:
    assert list(_findings(ast.parse(source))) == [finding]
