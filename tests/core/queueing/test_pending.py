"""Who in the line competes with whom."""

from __future__ import annotations

import random

from llmtrain_core.queueing.capacity import request_class
from llmtrain_core.queueing.pending import PendingQueue
from tests.support.queue_sim import Arrival, fabric


def test_rivals_are_those_ahead_that_could_use_the_same_nodes() -> None:
    chance = random.Random(5)
    seen = fabric(12, a=4, b=4)
    line, ahead = PendingQueue(), []
    for index in range(60):
        pool, gpus = chance.choice(["", "all", "a", "b"]), chance.choice([4, 8])
        job = Arrival(f"j{index:02}", 1, 1.0, gpus=gpus, pool=pool).waiting()
        requests = request_class(job.request, seen)
        met = [
            (place, key)
            for place, (key, other) in enumerate(ahead)
            if not pool or not other or other == pool
        ]
        line.competing(requests).clear()  # whoever gets it may change it
        assert line.competing(requests) == [key for _, key in met]
        cut = chance.randint(0, len(ahead))
        assert line.competing(requests, cut) == [key for place, key in met if place < cut]
        line.append(job, requests)
        ahead.append((job.key, pool))
    assert len(line) == 60
