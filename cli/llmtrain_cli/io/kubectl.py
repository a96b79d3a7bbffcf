"""Read objects of the current context with `kubectl`, which supports every login method."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from llmtrain_cli.errors import CliError
from llmtrain_cli.io.parsing import parse
from llmtrain_core.api.conditions import clean_text

TIMEOUT_SECONDS = 60
_UNKNOWN_TYPE = "the server doesn't have a resource type"


def get(kind: str, *, optional: bool = False) -> list[Mapping[str, Any]]:
    """Return all objects of a kind, in all namespaces.

    With `optional`, return an empty list if the cluster does not have the kind. Raises CliError if
    kubectl is missing or fails.
    """
    program = shutil.which("kubectl")
    if program is None:
        raise CliError(
            "kubectl: not on the PATH; install it, or pass --nodes FILE (and --pods FILE) as"
            " `kubectl get nodes -o json` and `kubectl get pods -A -o json` print them"
        )
    command = [program, "get", kind, "-A", "-o", "json", f"--request-timeout={TIMEOUT_SECONDS}s"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        if optional and _UNKNOWN_TYPE in answer.stderr:
            return []
        message = clean_text((answer.stderr.strip().splitlines() or ["no message"])[-1], 300)
        raise CliError(
            f"kubectl get {kind}: {message}; see that `kubectl config current-context` names your"
            " cluster, or pass --nodes FILE"
        )
    document = parse(answer.stdout, f"kubectl get {kind}")
    items = document.get("items") if isinstance(document, dict) else None
    return items if isinstance(items, list) else []
