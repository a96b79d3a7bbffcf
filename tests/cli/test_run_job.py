"""What `llmtrain run` makes of a job: the layout on this computer, the folders, the plot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtrain_cli.errors import CliError
from llmtrain_cli.io.files import read_job
from llmtrain_cli.run.local_job import local_job
from llmtrain_cli.run.plot import plot
from llmtrain_core.validation.check import Job, check
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

FOLDER = Path("/somewhere/run 1")


@pytest.fixture
def job() -> Job:
    """Tensor 2 x pipeline 2 x data 2 on four nodes of two GPUs."""
    return read_job(str(EXAMPLES / "sotu-3d.yaml"))


def changed(job: Job, **sections: Any) -> Job:
    found = check(job.name, {**job.spec.to_wire(), **sections})
    assert isinstance(found, Job), found
    return found


@pytest.mark.parametrize(
    ("ranks", "tensor", "pipeline", "layout"),
    [
        (None, None, None, "tp2·pp2·dp2"),
        (8, None, None, "tp2·pp2·dp2"),
        (4, None, None, "tp2·pp2"),
        (4, 1, None, "pp2·dp2"),
        (1, 1, 1, "dp1"),
        (None, 1, None, "pp2·dp2"),
    ],
)
def test_data_ranks_take_up_the_difference(
    job: Job, ranks: int | None, tensor: int | None, pipeline: int | None, layout: str
) -> None:
    here = local_job(job, ranks, tensor, pipeline, FOLDER)
    assert str(here.layout) == layout
    assert here.nodes == 1
    assert here.gpus_per_node == here.layout.world_size
    assert here.spec.training == job.spec.training
    assert here.spec.data == job.spec.data


def test_ranks_that_the_layout_cannot_use_are_refused_with_what_works(job: Job) -> None:
    with pytest.raises(CliError) as caught:
        local_job(job, 6, None, None, FOLDER)
    message = str(caught.value)
    assert "--nproc 6: tp2·pp2 needs a multiple of 4 ranks" in message
    options = message.rsplit(": ", 1)[1].split()
    values = dict(zip(options[::2], map(int, options[1::2]), strict=True))
    again = local_job(job, values["--nproc"], values["--tensor"], values["--pipeline"], FOLDER)
    assert again.layout.world_size == 6


def test_a_layout_that_the_job_forbids_names_the_field_and_the_nearest_that_works(
    job: Job,
) -> None:
    with pytest.raises(CliError) as caught:
        local_job(job, 8, 8, 1, FOLDER)
    assert "the nearest that works is" in str(caught.value)
    assert "parallelism.tensor" in str(caught.value)


def test_checkpoints_go_below_the_folder_as_often_as_the_job_says(job: Job) -> None:
    default = local_job(job, 8, None, None, FOLDER).spec.checkpoint
    assert default is not None
    assert default.uri == "file:///somewhere/run%201/checkpoints"
    given = changed(job, checkpoint={"uri": "file:///cluster", "everySteps": 7, "keep": 3})
    found = local_job(given, 8, None, None, FOLDER).spec.checkpoint
    assert found is not None
    assert (found.every_steps, found.keep, found.uri) == (7, 3, default.uri)


def test_what_only_a_cluster_has_does_not_matter_here(job: Job) -> None:
    wire = job.spec.to_wire()
    workers = {**wire["workers"], "gpusPerNode": 4, "nodeSelector": {"a": "b"}}
    clustered = changed(job, workers=workers, topology={"require": "rack"})
    assert local_job(clustered, 4, None, None, FOLDER).spec.topology is None


def test_a_job_with_its_own_trainer_is_refused() -> None:
    own = read_job(str(EXAMPLES / "bring-your-own-trainer.yaml"))
    with pytest.raises(CliError, match=r"spec\.workers\.command"):
        local_job(own, 1, None, None, FOLDER)


def test_a_falling_line_starts_at_the_top_and_ends_at_the_bottom() -> None:
    lines = plot({step: 10.0 - step for step in range(8)}, width=20, height=5).splitlines()
    drawn = [[ord(sign) - 0x2800 for sign in line.split("┤")[1]] for line in lines[:5]]
    assert drawn[0][0]
    assert drawn[4][19]
    # one dot in each of the two columns of a character
    assert sum(bits.bit_count() for row in drawn for bits in row) == 2 * 20
    assert lines[0].strip().startswith("10 ┤")
    assert lines[4].strip().startswith("3 ┤")
    assert lines[6].split() == ["step", "0", "7"]


@pytest.mark.parametrize("values", [{3: 2.0}, {3: 2.0, 9: 2.0}])
def test_a_line_without_extent_is_drawn(values: dict[int, float]) -> None:
    assert len(plot(values).splitlines()) == 12


def test_the_command_line_starts_without_torch() -> None:
    code = "import llmtrain_cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
