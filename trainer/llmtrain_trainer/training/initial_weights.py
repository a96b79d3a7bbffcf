"""Load the weights that a run starts from: `model.initFrom`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from llmtrain_trainer.checkpoint import init_from
from llmtrain_trainer.checkpoint.collective import broadcast_from_rank0
from llmtrain_trainer.checkpoint.corruption import corrupt_checkpoint, is_corruption
from llmtrain_trainer.checkpoint.paths import folder_from_uri
from llmtrain_trainer.checkpoint.state import load_weights, require_intact

log = logging.getLogger(__name__)


def load_initial_weights(
    uri: str, architecture: dict[str, Any], base: dict[str, Any] | None, model: nn.Module
) -> dict[str, Any]:
    """Load the weights of a base checkpoint, and return its record. Collective over all ranks.

    `base` is the record of the base that adapters were trained on, if they were.
    """
    root = folder_from_uri(uri, init_from.INIT_FROM_FIELD)

    def choose() -> tuple[str | None, dict[str, Any]]:
        found = init_from.base_checkpoint(uri, torch.__version__, architecture, base)
        require_intact(found.folder, init_from.INIT_FROM_FIELD)
        return None if found.folder == root else found.folder.name, found.record

    step: str | None
    record: dict[str, Any]
    step, record = broadcast_from_rank0(choose)
    folder = root if step is None else root / step
    try:
        load_weights(folder, model)
    except Exception as error:
        if not is_corruption(error):
            raise
        raise corrupt_checkpoint(folder, error, init_from.INIT_FROM_FIELD) from error
    log.info("started from %s", folder)
    return record
