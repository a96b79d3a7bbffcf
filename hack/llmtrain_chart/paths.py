"""The folders that the generator reads and writes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llmtrain"
DEPLOY = ROOT / "deploy"
