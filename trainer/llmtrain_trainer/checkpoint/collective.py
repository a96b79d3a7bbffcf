"""One rank looks and all go by what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from llmtrain_trainer.errors import InputError

T = TypeVar("T")


def broadcast_from_rank0(choose: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Return on every rank what rank 0 chose; collective.

    A shared file system may show different ranks different folders. Raises on every rank the
    InputError that rank 0 met.
    """
    found: list[T | InputError | None] = [None]
    if dist.get_rank() == 0:
        try:
            found[0] = choose()
        except InputError as error:
            found[0] = error
    dist.broadcast_object_list(found, src=0, group=group)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]  # type: ignore[return-value]
