"""Steps that all ranks take together: an error of one rank is raised on every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch.distributed as dist

from llmtrain_trainer.checkpoint.corruption import RankError, RankFailuresError
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime import json_collectives

T = TypeVar("T")


def broadcast_from_rank0(choose: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Return on every rank the result of rank 0, a JSON value; collective.

    A shared file system may show different ranks different folders. An InputError of rank 0 is
    raised on every rank.
    """
    found: Any = None
    if dist.get_rank() == 0:
        try:
            found = {"chosen": choose()}
        except InputError as error:
            parts = (error.reason, error.message, error.field, error.remedy)
            found = {"error": parts}
    found = json_collectives.broadcast(found, group)
    if "error" in found:
        reason, message, field, remedy = found["error"]
        raise InputError(reason, message, field=field, remedy=remedy)
    return found["chosen"]


def run_on_all(step: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Run a step on every rank of `group`, and raise on every rank if it fails on any.

    Without a group, run it on this rank only.
    """
    if group is None:
        return step()
    result: T | None = None
    failure: Exception | None = None
    try:
        result = step()
    except Exception as error:
        failure = error
    own = None if failure is None else asdict(RankError.of(failure))
    answers = json_collectives.all_gather(own, group)
    errors = {rank: RankError(**each) for rank, each in enumerate(answers) if each is not None}
    if errors:
        raise RankFailuresError(errors) from failure
    return result  # type: ignore[return-value]
