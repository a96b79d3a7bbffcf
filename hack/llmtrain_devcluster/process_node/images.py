"""The images that process nodes can "run": a name, and what its file system would bring."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TRAINER_IMAGE = "llmtrain/trainer:dev"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The grammar of image references, as far as a typing mistake can break it.
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[\w.-]+(?::\d+)?/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[\w][\w.-]{{0,127}})?(?:@[\w+.:-]+)?"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image gives to a container: environment and the command it has by default."""

    env: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


def default_images() -> dict[str, Image]:
    """Return the images that are always there: the trainer, as this very environment."""
    programs = str(Path(sys.prefix) / "bin")
    path = os.pathsep.join((programs, SYSTEM_PATH))
    env = {"PATH": path, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    return {TRAINER_IMAGE: Image(env)}


def visible_paths() -> list[str]:
    """Return the folders that containers must see even where they lie below /tmp."""
    package = Path(__file__).resolve()
    return [str(package.parents[3]), sys.prefix, sys.base_prefix]


def is_valid(reference: str) -> bool:
    """Say whether a text can be an image's name at all."""
    return _REFERENCE.fullmatch(reference) is not None
