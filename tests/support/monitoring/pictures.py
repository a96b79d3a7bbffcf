"""Pictures of the dashboards in tests, and what they lack."""

from __future__ import annotations

import os
from pathlib import Path

from llmtrain_monitoring.paths import FILES
from llmtrain_pictures.chromium import Picture
from llmtrain_pictures.draw import draw
from tests.support.exported_metrics import HARDWARE
from tests.support.paths import ROOT

FOLDER = Path(os.environ.get("LLMTRAIN_PICTURES") or ROOT / "runs" / "pictures")
"""Where pictures are kept."""


def pictures(name: str, prometheus: str, seconds: int) -> dict[str, Picture]:
    """Draw all dashboards over the last seconds into a folder of their own."""
    return draw(FILES / "dashboards", prometheus, FOLDER / name, seconds=seconds)


def problems(drawn: dict[str, Picture]) -> list[str]:
    """Return what pictures lack, but for what needs hardware."""
    return [
        problem
        for picture in drawn.values()
        for problem in picture.problems
        if not any(metric in problem for metric in HARDWARE)
    ]


def after(text: str, title: str, name: str) -> str:
    """Return the line that follows a name in the panel with a title."""
    lines = text.split(f"\n{title}\n")[1].splitlines()
    return lines[lines.index(name) + 1]
