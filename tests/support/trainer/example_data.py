"""Prepared fine-tuning examples of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def random_examples(
    folder: Path, train: Sequence[int], held_out: Sequence[int] = (9,), seed: int = 0
) -> Any:
    """Write examples with the given numbers of tokens. The last third of each is in the loss."""
    import numpy as np

    from llmtrain_trainer.data.examples import COUNTED, FIRST
    from llmtrain_trainer.data.prepare import PreparedData
    from llmtrain_trainer.data.shards import write_shards

    random = np.random.default_rng(seed)

    def example(length: int) -> Any:
        ids = random.integers(0, 320, length).astype(np.uint32)
        ids[-max(1, length // 3) :] |= np.uint32(COUNTED)
        ids[0] |= np.uint32(FIRST)
        return ids

    for part, lengths in (("train", train), ("held-out", held_out)):
        write_shards(folder, part, [example(each) for each in lengths], 1 << 32)
    return PreparedData(folder, sum(train), sum(held_out), "digest", examples=True)
