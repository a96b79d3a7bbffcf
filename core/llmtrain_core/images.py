"""Names of the images of this version."""

from __future__ import annotations

VERSION = "0.1.0"
"""That of pyproject.toml and of the chart."""
OPERATOR_REPOSITORY = "llmtrain/operator"
TRAINER_REPOSITORY = "llmtrain/trainer"
OPERATOR = f"{OPERATOR_REPOSITORY}:{VERSION}"
TRAINER = f"{TRAINER_REPOSITORY}:{VERSION}"
