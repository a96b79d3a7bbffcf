"""The file of communication settings beside the checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain_core.api.status.communication import (
    CommunicationSetting,
    CommunicationTrial,
    CommunicationTuning,
)
from llmtrain_trainer.training.tuning_file import (
    COMMUNICATION_FILE,
    MAX_PLACEMENTS,
    TuningFile,
)

pytestmark = pytest.mark.unit


def tuning(copies: int = 2) -> CommunicationTuning:
    setting = CommunicationSetting(copies_per_rack=copies, overlap=True)
    trials = [CommunicationTrial(step_seconds=0.25), CommunicationTrial(copies_per_rack=copies)]
    return CommunicationTuning(state="Chosen", setting=setting, from_step=7, trials=trials)


def test_placements_are_kept_apart(tmp_path: Path) -> None:
    file = TuningFile(tmp_path / "new")
    assert file.read("a") is None
    file.write("a", tuning())
    file.write("b", tuning(4))
    file.write("a", tuning(8))
    assert (file.read("a"), file.read("b"), file.read("c")) == (tuning(8), tuning(4), None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [COMMUNICATION_FILE]


def test_the_oldest_placement_is_dropped(tmp_path: Path) -> None:
    file = TuningFile(tmp_path)
    for number in range(MAX_PLACEMENTS):
        file.write(str(number), tuning())
    file.write("0", tuning(3))
    file.write("new", tuning())
    assert file.read("0") == tuning(3) and file.read("1") is None and file.read("2") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 1000,
        b"{}",
        b'[1, null, {"placement": 1}, {"placement": "a"}]',
        b'[{"placement": "a", "communication": {"state": "Chosen"}}]',
        b'[{"placement": "a", "communication": {"state": "Chosen", "setting": {"chunks": 0},'
        b' "fromStep": 1, "trials": []}}]',
        b" " * (2 << 20),
    ],
    ids=range(8),
)
def test_a_damaged_file_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / COMMUNICATION_FILE).write_bytes(content)
    file = TuningFile(tmp_path)
    assert file.read("a") is None
    file.write("a", tuning())
    assert file.read("a") == tuning()


def test_a_folder_that_cannot_be_written_does_not_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = TuningFile(tmp_path / "file")
    file.write("a", tuning())
    assert file.read("a") is None
