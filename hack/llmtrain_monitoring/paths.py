"""Folders of the repository that this package reads and writes."""

from pathlib import Path

HACK = Path(__file__).resolve().parents[1]
FILES = HACK.parent / "charts" / "llmtrain" / "files"
"""Files of the chart, with a folder for dashboards and one for rules."""
