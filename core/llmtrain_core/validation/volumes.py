"""Names and mount paths that volumes of a job cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.api import env
from llmtrain_core.api.conditions import Reason
from llmtrain_core.images import TRAINER_PATHS
from llmtrain_core.validation.problem import Problem


def volume_name_problems(field: str, name: str) -> Iterator[Problem]:
    """Yield the problem of the volume at the path `field` if its name is reserved."""
    if name.startswith(env.VOLUME_PREFIX):
        yield Problem(
            Reason.FORBIDDEN,
            f"{field}.name",
            f"names that start with {env.VOLUME_PREFIX} are reserved for the pod contract",
            "rename the volume",
        )


def overlaps(path: str, folder: str) -> bool:
    """Return whether a path is at, above or below a folder.

    Paths have no empty segments, `.` or `..`.
    """
    return f"{path}/".startswith(f"{folder}/") or folder.startswith(f"{path}/")


def reserved_folder(path: str, *, own_image: bool) -> tuple[str, str] | None:
    """Return the first reserved folder at, above or below a path, and what reserves it.

    Folders of the trainer image count only for our trainer, because the layout of other images is
    not known.
    """
    reserved = [
        *((folder, "is reserved for the pod contract") for folder in env.OWNED_PATHS),
        *((folder, "is reserved for the container runtime") for folder in env.RUNTIME_PATHS),
    ]
    if not own_image:
        reserved += [(folder, "belongs to the trainer image") for folder in TRAINER_PATHS]
    return next((found for found in reserved if overlaps(path, found[0])), None)
