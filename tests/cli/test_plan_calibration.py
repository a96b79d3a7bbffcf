"""`llmtrain plan --calibration`: the time of a job on CPU cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmtrain_cli.errors import CliError
from llmtrain_cli.main import app
from llmtrain_core.plan.cpu.cost_model import WORK_KINDS, CpuCostModel
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.unit

EXAMPLE = str(EXAMPLES / "sotu-3d.yaml")


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(CpuCostModel(2, dict.fromkeys(WORK_KINDS, 1e-9)).to_wire()))
    return str(path)


def test_json_and_text_have_the_same_figures(calibration: str) -> None:
    command = ["plan", "-f", EXAMPLE, "--calibration", calibration]
    text = CliRunner().invoke(app, command)
    wire = json.loads(CliRunner().invoke(app, [*command, "-o", "json"]).stdout)
    assert text.exit_code == 0, text.output
    assert f"{wire['step']['cpuSeconds']:.3f} CPU seconds" in text.stdout
    assert wire["step"]["seconds"] >= wire["step"]["cpuSeconds"] / 2
    assert wire["seconds"] == pytest.approx(wire["steps"] * wire["step"]["seconds"])
    assert max(map(len, text.stdout.splitlines())) <= 80


def test_an_invalid_calibration_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"cores": 2}')
    found = CliRunner().invoke(app, ["plan", "-f", EXAMPLE, "--calibration", str(path)])
    assert isinstance(found.exception, CliError)
    assert "calibrate this machine again" in str(found.exception)


@pytest.mark.parametrize("extra", [["--gpu", "H100"], ["--gpus", "8"], ["--days", "3"]])
def test_gpu_options_conflict_with_a_calibration(calibration: str, extra: list[str]) -> None:
    found = CliRunner().invoke(app, ["plan", "-f", EXAMPLE, "--calibration", calibration, *extra])
    assert isinstance(found.exception, CliError)
    assert "goes with -f JOB" in str(found.exception)
