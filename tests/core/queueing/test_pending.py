"""Who in the line competes with whom."""

from __future__ import annotations

import random

from llmtrain_core.queueing.capacity import shape_of
from llmtrain_core.queueing.pending import Line
from tests.support.queue_sim import Arrival, fabric


def test_rivals_are_those_ahead_that_could_use_the_same_nodes() -> None:
    chance = random.Random(5)
    seen = fabric(12, a=4, b=4)
    line, ahead = Line(), []
    for index in range(60):
        pool, gpus = chance.choice(["", "all", "a", "b"]), chance.choice([4, 8])
        job = Arrival(f"j{index:02}", 1, 1.0, gpus=gpus, pool=pool).waiting(seen)
        shape = shape_of(job.request, seen)
        met = [
            (place, key)
            for place, (key, other) in enumerate(ahead)
            if not pool or not other or other == pool
        ]
        line.rivals(shape).clear()  # whoever gets it may change it
        assert line.rivals(shape) == [key for _, key in met]
        cut = chance.randint(0, len(ahead))
        assert line.rivals(shape, cut) == [key for place, key in met if place < cut]
        line.append(job, shape)
        ahead.append((job.key, pool))
    assert len(line) == 60
