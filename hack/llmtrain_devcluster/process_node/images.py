"""The images that process nodes can "run": an environment and a command for each name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmtrain_core.images import TRAINER
from llmtrain_devcluster.process_node.python_environment import PythonEnvironment

# The grammar of image references, as far as a typing mistake can break it.
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[\w.-]+(?::\d+)?/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[\w][\w.-]{{0,127}})?(?:@[\w+.:-]+)?"
)


@dataclass(frozen=True, slots=True)
class Image:
    """The environment and the default command of an image."""

    env: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


def default_images(environment: PythonEnvironment) -> dict[str, Image]:
    """Return the images that are always available: the trainer, as the given environment."""
    env = {**environment.env, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    return {TRAINER: Image(env)}


def is_valid(reference: str) -> bool:
    """Return True if a text is a valid image reference."""
    return _REFERENCE.fullmatch(reference) is not None
