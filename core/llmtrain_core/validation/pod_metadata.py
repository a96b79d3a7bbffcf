"""Checks of the labels and annotations that a job adds to its pods."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llmtrain_core.api import labels
from llmtrain_core.api.base import LABEL_KEY
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.workers import Workers
from llmtrain_core.validation.problem import Problem


def metadata_problems(workers: Workers) -> Iterator[Problem]:
    """Yield the labels and annotations that a job cannot set."""
    yield from _key_problems("spec.workers.podLabels", workers.pod_labels or ())
    yield from _key_problems("spec.workers.podAnnotations", workers.pod_annotations or ())
    for key, value in (workers.pod_annotations or {}).items():
        if _is_of(key, labels.CONFINEMENT) and value == "unconfined":
            yield Problem(
                Reason.FORBIDDEN,
                f"spec.workers.podAnnotations.{key}",
                f"{key} takes the AppArmor profile from a container, which the Pod Security level"
                " baseline does not admit",
                "remove it, or name a profile: runtime/default or localhost/PROFILE",
            )
        if _is_of(key, labels.NODE_ACCESS):
            yield Problem(
                Reason.FORBIDDEN,
                f"spec.workers.podAnnotations.{key}",
                f"{key} tells the container runtime which devices or mounts of the node the pod"
                " gets",
                "remove it; the pod gets the devices that it requests",
            )


def _key_problems(field: str, keys: Iterable[str]) -> Iterator[Problem]:
    for key in keys:
        if not re.fullmatch(LABEL_KEY[1:-1], key, re.ASCII):
            message = f"{key!r} is not a key: [DOMAIN/]NAME"
            yield Problem(Reason.INVALID_SPEC, f"{field}.{key}", message, "correct the key")
        elif key == labels.MANAGED_BY or _is_of(key, labels.DOMAINS):
            message = f"{key} is set by the operator only"
            yield Problem(Reason.FORBIDDEN, f"{field}.{key}", message, "remove the entry")


def _is_of(key: str, names: Iterable[str]) -> bool:
    """Return True if a key is one of these names, or is in one of them as its domain.

    A domain has its subdomains. Container runtimes append the name of a container to a key.
    """
    domain, _, _ = key.rpartition("/")
    return any(
        key == name or domain == name or domain.endswith(f".{name}") or key.startswith(f"{name}.")
        for name in names
    )
