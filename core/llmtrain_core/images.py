"""Names of the images of this version."""

from __future__ import annotations

VERSION = "0.2.0"
"""Version of the release. `pyproject.toml`, the chart and the pages have the same one."""
OPERATOR_REPOSITORY = "llmtrain/operator"
TRAINER_REPOSITORY = "llmtrain/trainer"
OPERATOR = f"{OPERATOR_REPOSITORY}:{VERSION}"
TRAINER = f"{TRAINER_REPOSITORY}:{VERSION}"

TRAINER_PATHS = (
    "/opt/llmtrain",
    "/usr/bin",
    "/usr/lib",
    "/usr/local/bin",
    "/usr/local/lib",
    "/bin",
    "/lib",
    "/lib64",
    "/sbin",
)
"""Folders of the trainer image with the programs and libraries that it runs."""
