"""Make a job that tries NCCL variables (`network.tuning`) from one that trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from llmtrain_cli.errors import CliError
from llmtrain_core.validation.check import NAME_LIMIT, check

SUFFIX = "-tune"
_LEFT_OUT = ("checkpoint", "suspend")
"""Sections that trials do not use: they write nothing, and start at once."""
_LEFT_OUT_OF_TRAINING = ("tokens", "evaluateEverySteps", "collectiveProbe", "trackers")


def tuning_job(document: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the manifest of a tuning job with `steps` steps for each trial.

    `document` is a valid manifest. Layout, model, data, nodes and network are the same. Raises
    CliError if trials of this job are not possible.
    """
    metadata, spec = document["metadata"], copy.deepcopy(dict(document["spec"]))
    training = spec.get("training")
    if not isinstance(training, dict) or (spec.get("workers") or {}).get("command"):
        raise CliError("spec.workers.command: llmtrain tune needs the trainer of this release")
    for name in _LEFT_OUT:
        spec.pop(name, None)
    for name in _LEFT_OUT_OF_TRAINING:
        training.pop(name, None)
    training["steps"] = steps
    if training.get("communication"):
        training["communication"].pop("autotune", None)
    if training.get("lora"):
        training["lora"].pop("merge", None)  # it is written beside the checkpoints
    spec["network"] = {**(spec.get("network") or {}), "tuning": {}}
    name = metadata["name"][: NAME_LIMIT - len(SUFFIX)].rstrip("-") + SUFFIX
    problems = check(name, spec)
    if isinstance(problems, list):
        raise CliError("\n".join(["the job cannot be tuned:", *(f"  {p}" for p in problems)]))
    kept = {key: metadata[key] for key in ("namespace", "labels") if metadata.get(key)}
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": {"name": name, **kept},
        "spec": spec,
    }
