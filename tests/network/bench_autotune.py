"""Communication settings that a real job tries on two racks of shaped network namespaces.

With the nodes of a rack next to each other, a hierarchical all-reduce sends 1 / 1.75 of the bytes
of a flat ring between the racks. With the order of ranks rotated by half a rack, racks of the job
span both racks, and it sends 4 / 1.75 of them. The links between the racks are slow enough to be
the limit although eight ranks share the cores of this machine.

`python -m pytest tests/network/bench_autotune.py -s` prints the tables (root).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_trainer.runtime.reports import CommunicationReport, StepReport
from tests.support.network.racks import NODES, Racks, racks
from tests.support.network.trainers import serve_training, trainers
from tests.support.trainer.jobs import job_spec

pytestmark = [pytest.mark.perf, pytest.mark.timeout(3600)]

PACKED, ROTATED = (0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 4, 5, 6, 7, 2, 3)
"""Nodes in order of rank; rack i has the nodes 4i to 4i + 3."""
MODEL = {"hiddenSize": 128, "ffnSize": 320}
"""With float64 about 6 MB of gradients."""
BETWEEN_RACKS_MBIT = 50
"""A flat ring needs 1.7 s for its bytes, of which the rest of a step is a small part."""
STEPS, EVERY = 60, 5
WHOLE_TRAINING = timedelta(minutes=20)


def spec(folder: Path, communication: dict[str, Any], copies_per_rack: int = 1) -> dict[str, Any]:
    training = {
        "steps": STEPS,
        "globalBatchSize": NODES,
        "microBatchSize": 1,
        "gradientSync": {"copiesPerRack": copies_per_rack},
        "communication": communication,
    }
    checkpoint = {"uri": f"file://{folder}/checkpoints", "everySteps": EVERY, "keep": STEPS}
    return job_spec(
        replicate=NODES,
        gpus_per_node=1,
        architecture=MODEL,
        training=training,
        checkpoint=checkpoint,
    )


def train(
    made: Racks, order: Sequence[int], job: dict[str, Any], folder: Path
) -> tuple[dict[int, float], list[CommunicationTuning]]:
    """Return the loss of each step, and the reports of trials."""
    folder.mkdir(exist_ok=True)
    with trainers(made, order, job, folder, serve_training) as ranks:
        sent = ranks.answers(WHOLE_TRAINING)[0]
    losses = {each.step: each.loss for each in sent if isinstance(each, StepReport)}
    return losses, [each.tuning for each in sent if isinstance(each, CommunicationReport)]


def show(title: str, found: CommunicationTuning) -> None:
    print(f"\n{title}\n{'COPIES':>8}{'OVERLAP':>9}{'BUCKET':>10}{'CHUNKS':>8}{'SECONDS':>9}")
    for each in found.trials:
        chosen = (
            " chosen"
            if each.model_dump(exclude={"step_seconds"}) == (found.setting.model_dump())
            else ""
        )
        print(
            f"{each.copies_per_rack:>8}{each.overlap!s:>9}{each.bucket_bytes:>10}{each.chunks:>8}"
            f"{each.step_seconds:>9.3f}{chosen}"
        )


def test_the_faster_all_reduce_is_kept(tmp_path: Path) -> None:
    with racks() as made:
        for number in range(made.racks):
            made.shape_uplink(number, BETWEEN_RACKS_MBIT)
        losses, reports = train(
            made, PACKED, spec(tmp_path / "tuned", {"autotune": True}), tmp_path / "tuned"
        )
        chosen = reports[-1]
        show("racks of four neighbouring ranks", chosen)
        assert chosen.state == "Chosen"
        assert chosen.setting.copies_per_rack == 4
        # the run goes on as one that starts after the trials with the chosen setting
        first = -(-(chosen.from_step - 1) // EVERY) * EVERY
        saved = tmp_path / "set" / "checkpoints" / f"step-{first}"
        shutil.copytree(tmp_path / "tuned" / "checkpoints" / f"step-{first}", saved)
        setting = chosen.setting
        fields: dict[str, Any] = {"overlap": setting.overlap, "chunks": setting.chunks}
        if setting.bucket_bytes:
            fields["bucketSize"] = setting.bucket_bytes
        again, _ = train(
            made, PACKED, spec(tmp_path / "set", fields, setting.copies_per_rack), tmp_path / "set"
        )
        assert again == {step: losses[step] for step in range(first + 1, STEPS + 1)}
        print(f"the losses of steps {first + 1} to {STEPS} are equal bit for bit")
        # racks that are none: the job names a size that does not suit the placement
        fixed = {"autotune": True, "overlap": False, "chunks": 1}
        _, reports = train(
            made, ROTATED, spec(tmp_path / "rotated", fixed, 4), tmp_path / "rotated"
        )
        show("racks of ranks in both racks", reports[-1])
        assert (reports[-1].state, reports[-1].setting.copies_per_rack) == ("Chosen", 1)
