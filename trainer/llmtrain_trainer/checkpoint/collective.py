"""Run a function on rank 0 and broadcast its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from llmtrain_trainer.errors import InputError

T = TypeVar("T")


def broadcast_from_rank0(choose: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Return on every rank the result of rank 0; collective.

    A shared file system may show different ranks different folders. An InputError of rank 0 is
    raised on every rank.
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
